/* allowlist COMMAND [ARGUMENTS]
 *
 * Runs COMMAND, and all that it starts, with only those system calls that docs/seccomp.json allows; all others fail with
 * EPERM, as in a container with that profile. The names are in allowed.inc, which scripts/restricted.sh makes of the
 * profile; those that this processor has not are left out there. */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define OWN_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define OWN_ARCH AUDIT_ARCH_AARCH64
#else
#error "add the AUDIT_ARCH_ constant of this processor"
#endif

static const unsigned allowed[] = {
#include "allowed.inc"
};
enum { COUNT = sizeof allowed / sizeof allowed[0] };

int main(int count, char **argument) {
    static struct sock_filter code[2 * COUNT + 5];
    unsigned short at = 0;
    if (count < 2) {
        fprintf(stderr, "usage: allowlist COMMAND [ARGUMENTS]\n");
        return 2;
    }
    code[at++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
    code[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, OWN_ARCH, 1, 0);
    code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    code[at++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (unsigned i = 0; i < COUNT; i++) {
        code[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[i], 0, 1);
        code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    }
    code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM);
    struct sock_fprog program = {at, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
        perror("allowlist: seccomp");
        return 125;
    }
    execvp(argument[1], argument + 1);
    perror(argument[1]);
    return 127;
}
