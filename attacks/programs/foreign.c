/* B3, H7: unlink(2) by the number that it has for i386 programs. */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

int main(int argc, char **argv) {
	/* An i386 call takes 32-bit addresses. */
	char *low = mmap((void *)0x10000000, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	long r = 10;
	if (low == MAP_FAILED) return 1;
	strncpy(low, argv[1], 4095);
	__asm__ volatile("int $0x80" : "+a"(r) : "b"((long)low) : "memory", "r8", "r9", "r10", "r11");
	if ((int)r < 0) return fprintf(stderr, "errno %d\n", -(int)r), 1;
	return 0;
}
