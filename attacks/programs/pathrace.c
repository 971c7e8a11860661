/* B2, E3: a thread rewrites the path while open(2) is looked at: a file of one's own, then one
   outside. Either may be opened; the one outside must stay as it is. */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>

static char path[4096], own[4096], victim[4096];
static volatile int over;
static volatile long rounds; /* of the rewriter: a busy machine may let it wait */

/* Without it the compiler drops the first of two writes to one place. */
#define BARRIER __asm__ volatile("" ::: "memory")

static void *rewrite(void *unused) {
	while (!over) {
		memcpy(path, own, sizeof path);
		BARRIER;
		memcpy(path, victim, sizeof path);
		BARRIER;
		rounds++;
	}
	return unused;
}

int main(int argc, char **argv) {
	pthread_t t;
	strncpy(own, argv[1], sizeof own - 1);
	strncpy(victim, argv[2], sizeof victim - 1);
	memcpy(path, own, sizeof path);
	pthread_create(&t, 0, rewrite, 0);
	while (rounds == 0) sched_yield();
	long from = rounds;
	for (int i = 0; i < 400 || (rounds - from < 100000 && i < 100000); i++) {
		int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
		if (fd >= 0) {
			if (write(fd, "attacked", 8) < 0) return 1;
			close(fd);
		}
	}
	over = 1;
	pthread_join(t, 0);
	return 0;
}
