/* F1, F2, E3: a thread rewrites the address of a datagram while sendto(2) is looked at: a
   socket of one's own by its path, then a server outside, @ and an abstract name or a path. */
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static struct sockaddr_un own, victim, address;
static volatile int over;
static volatile long rounds; /* of the rewriter: a busy machine may let it wait */

/* Without it the compiler drops the first of two writes to one place. */
#define BARRIER __asm__ volatile("" ::: "memory")

static void *rewrite(void *unused) {
	while (!over) {
		memcpy(&address, &own, sizeof address);
		BARRIER;
		memcpy(&address, &victim, sizeof address);
		BARRIER;
		rounds++;
	}
	return unused;
}

int main(int argc, char **argv) {
	/* Both names are of one length; a path may end at its first NUL. */
	socklen_t size = 2 + strlen(argv[2]);
	int server = socket(AF_UNIX, SOCK_DGRAM, 0), sent = 0;
	char byte[16];
	pthread_t t;
	own.sun_family = victim.sun_family = AF_UNIX;
	strncpy(own.sun_path, argv[1], sizeof own.sun_path - 1);
	strncpy(victim.sun_path, argv[2], sizeof victim.sun_path - 1);
	if (argv[2][0] == '@') victim.sun_path[0] = 0;
	if (bind(server, (void *)&own, sizeof own)) return 1;
	pthread_create(&t, 0, rewrite, 0);
	while (rounds == 0) sched_yield();
	long from = rounds;
	for (int i = 0; i < 3000 || (rounds - from < 100000 && i < 100000); i++) {
		int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
		sent += sendto(fd, "attacked", 8, MSG_DONTWAIT, (void *)&address, size) > 0;
		close(fd);
		while (recv(server, byte, sizeof byte, MSG_DONTWAIT) > 0);
	}
	over = 1;
	pthread_join(t, 0);
	return sent == 0;
}
