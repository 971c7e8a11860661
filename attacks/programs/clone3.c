/* H7: a user namespace of one's own, with every capability in it, by clone3(2): its flags are
   behind a pointer, where no filter sees them. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void) {
	uint64_t args[8] = {CLONE_NEWUSER | CLONE_NEWNET, 0, 0, 0, 17 /* SIGCHLD */};
	long p = syscall(SYS_clone3, args, sizeof args);
	if (p == 0) _exit(0);
	if (p < 0) return perror("clone3"), 1;
	waitpid(p, 0, 0);
	return 0;
}
