/* F1, E3: a thread rewrites the address while connect(2) is looked at: a server of one's own,
   then one outside, which must not hear of it. */
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
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
	pthread_t t;
	own.sun_family = victim.sun_family = AF_UNIX;
	strncpy(own.sun_path, argv[1], sizeof own.sun_path - 1);
	strncpy(victim.sun_path, argv[2], sizeof victim.sun_path - 1);
	int server = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
	unlink(argv[1]);
	if (bind(server, (void *)&own, sizeof own) || listen(server, 1000)) return 1;
	memcpy(&address, &own, sizeof address);
	pthread_create(&t, 0, rewrite, 0);
	while (rounds == 0) sched_yield();
	long from = rounds;
	for (int i = 0; i < 400 || (rounds - from < 100000 && i < 100000); i++) {
		int fd = socket(AF_UNIX, SOCK_STREAM, 0);
		if (connect(fd, (void *)&address, sizeof address) == 0)
			if (write(fd, "attacked", 8) < 0) return 1;
		close(fd);
		int mine = accept(server, 0, 0);
		if (mine >= 0) close(mine);
	}
	over = 1;
	pthread_join(t, 0);
	return 0;
}
