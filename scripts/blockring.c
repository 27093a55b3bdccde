/* blockring EPERM|ENOSYS|ENOMEM|KILL|RESTRICT COMMAND [ARGUMENTS]
 *
 * Runs COMMAND, and all that it starts, with the three io_uring system calls refused: EPERM is what container
 * profiles answer, ENOSYS what a kernel without io_uring answers, ENOMEM what a low limit answers, KILL proves
 * that no such call is made. RESTRICT refuses nothing but to restrict a ring, with EINVAL. */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#if defined(__x86_64__)
#define OWN_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define OWN_ARCH AUDIT_ARCH_AARCH64
#else
#error "add the AUDIT_ARCH_ constant of this processor"
#endif

/* io_uring_setup, io_uring_enter and io_uring_register have the same numbers on every processor. */
enum { FIRST = 425, LAST = 427 };

int main(int count, char **argument) {
    static const struct { const char *name; unsigned action; } modes[] = {
        {"EPERM", SECCOMP_RET_ERRNO | EPERM},
        {"ENOSYS", SECCOMP_RET_ERRNO | ENOSYS},
        {"ENOMEM", SECCOMP_RET_ERRNO | ENOMEM},
        {"KILL", SECCOMP_RET_KILL_PROCESS},
        {"RESTRICT", SECCOMP_RET_ERRNO | EINVAL},
    };
    size_t mode = 0, known = sizeof modes / sizeof modes[0];
    while (count > 2 && mode < known && strcmp(argument[1], modes[mode].name) != 0) mode++;
    if (count < 3 || mode == known) {
        fprintf(stderr, "usage: blockring EPERM|ENOSYS|ENOMEM|KILL|RESTRICT COMMAND [ARGUMENTS]\n");
        return 2;
    }
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, OWN_ARCH, 0, 4),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, FIRST, 0, 2),
        BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, LAST, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, modes[mode].action),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    /* Only io_uring_register with IORING_REGISTER_RESTRICTIONS. */
    struct sock_filter restrictions[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, OWN_ARCH, 0, 5),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, LAST, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 11, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, modes[mode].action),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof code[0], code};
    if (strcmp(argument[1], "RESTRICT") == 0) {
        program = (struct sock_fprog){sizeof restrictions / sizeof restrictions[0], restrictions};
    }
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
        perror("blockring: seccomp");
        return 125;
    }
    execvp(argument[2], argument + 2);
    perror(argument[2]);
    return 127;
}
