package sys

// Call is a system call that the filter sends to the supervisor, whatever the machine's
// number for it is.
type Call uint8

// The calls. [CallUnknown] is one that the table does not know.
const (
	CallUnknown Call = iota
	CallOpenat
	CallOpen
	CallOpenat2
	CallCreat
	CallExecve
	CallExecveat
	CallExit
	CallExitGroup
	CallUnlink
	CallUnlinkat
	CallRmdir
	CallRename
	CallRenameat
	CallRenameat2
	CallLink
	CallLinkat
	CallSymlink
	CallSymlinkat
	CallMkdir
	CallMkdirat
	CallMknod
	CallMknodat
	CallTruncate
	CallFtruncate
	CallChmod
	CallFchmod
	CallFchmodat
	CallFchmodat2
	CallChown
	CallFchown
	CallLchown
	CallFchownat
	CallUtime
	CallUtimes
	CallFutimesat
	CallUtimensat
	CallSetxattr
	CallLsetxattr
	CallFsetxattr
	CallSetxattrat
	CallRemovexattr
	CallLremovexattr
	CallFremovexattr
	CallRemovexattrat
	CallFileSetattr
	CallBind
	CallConnect
	CallSocket
	CallSocketpair
	CallSendto
	CallSendmsg
	CallSendmmsg
	CallIoctl
	CallPrctl
	CallShmget
	CallSemget
	CallMsgget
	CallMqOpen
	CallMqUnlink
	CallSetrlimit
	CallFork
	CallVfork
	CallNameToHandleAt
	CallOpenByHandleAt
	CallMount
	CallUmount2
	CallPivotRoot
	CallChroot
	CallOpenTree
	CallOpenTreeAttr
	CallMoveMount
	CallFsopen
	CallFsconfig
	CallFsmount
	CallFspick
	CallMountSetattr
	CallUnshare
	CallSetns
	CallClone
	CallClone3
	CallIoUringSetup
	CallIoUringEnter
	CallIoUringRegister
	CallKill
	CallTkill
	CallTgkill
	CallPidfdSendSignal
	CallRtSigqueueinfo
	CallRtTgsigqueueinfo
	CallSetpriority
	CallSchedSetscheduler
	CallSchedSetparam
	CallSchedSetattr
	CallSchedSetaffinity
	CallIoprioSet
	CallPrlimit64
	CallPtrace
	CallProcessVMReadv
	CallProcessVMWritev
	CallPidfdGetfd
	CallPidfdOpen
	CallProcessMadvise
	CallKcmp
	CallReboot
	CallKexecLoad
	CallKexecFileLoad
	CallSwapon
	CallSwapoff
	CallSettimeofday
	CallClockSettime
	CallClockAdjtime
	CallAdjtimex
	CallSethostname
	CallSetdomainname
	CallInitModule
	CallFinitModule
	CallDeleteModule
	CallBPF
	CallPerfEventOpen
	CallUserfaultfd
	CallFanotifyInit
	CallQuotactl
	CallQuotactlFD
	CallSyslog
	CallAcct
	CallVhangup
	CallIopl
	CallIoperm
	CallKeyctl
	CallAddKey
	CallRequestKey
	numCalls
)

var callNames = [numCalls]string{
	CallUnknown:           "unknown",
	CallOpenat:            "openat",
	CallOpen:              "open",
	CallOpenat2:           "openat2",
	CallCreat:             "creat",
	CallExecve:            "execve",
	CallExecveat:          "execveat",
	CallExit:              "exit",
	CallExitGroup:         "exit_group",
	CallUnlink:            "unlink",
	CallUnlinkat:          "unlinkat",
	CallRmdir:             "rmdir",
	CallRename:            "rename",
	CallRenameat:          "renameat",
	CallRenameat2:         "renameat2",
	CallLink:              "link",
	CallLinkat:            "linkat",
	CallSymlink:           "symlink",
	CallSymlinkat:         "symlinkat",
	CallMkdir:             "mkdir",
	CallMkdirat:           "mkdirat",
	CallMknod:             "mknod",
	CallMknodat:           "mknodat",
	CallTruncate:          "truncate",
	CallFtruncate:         "ftruncate",
	CallChmod:             "chmod",
	CallFchmod:            "fchmod",
	CallFchmodat:          "fchmodat",
	CallFchmodat2:         "fchmodat2",
	CallChown:             "chown",
	CallFchown:            "fchown",
	CallLchown:            "lchown",
	CallFchownat:          "fchownat",
	CallUtime:             "utime",
	CallUtimes:            "utimes",
	CallFutimesat:         "futimesat",
	CallUtimensat:         "utimensat",
	CallSetxattr:          "setxattr",
	CallLsetxattr:         "lsetxattr",
	CallFsetxattr:         "fsetxattr",
	CallSetxattrat:        "setxattrat",
	CallRemovexattr:       "removexattr",
	CallLremovexattr:      "lremovexattr",
	CallFremovexattr:      "fremovexattr",
	CallRemovexattrat:     "removexattrat",
	CallFileSetattr:       "file_setattr",
	CallBind:              "bind",
	CallConnect:           "connect",
	CallSocket:            "socket",
	CallSocketpair:        "socketpair",
	CallSendto:            "sendto",
	CallSendmsg:           "sendmsg",
	CallSendmmsg:          "sendmmsg",
	CallIoctl:             "ioctl",
	CallPrctl:             "prctl",
	CallShmget:            "shmget",
	CallSemget:            "semget",
	CallMsgget:            "msgget",
	CallMqOpen:            "mq_open",
	CallMqUnlink:          "mq_unlink",
	CallSetrlimit:         "setrlimit",
	CallFork:              "fork",
	CallVfork:             "vfork",
	CallNameToHandleAt:    "name_to_handle_at",
	CallOpenByHandleAt:    "open_by_handle_at",
	CallMount:             "mount",
	CallUmount2:           "umount2",
	CallPivotRoot:         "pivot_root",
	CallChroot:            "chroot",
	CallOpenTree:          "open_tree",
	CallOpenTreeAttr:      "open_tree_attr",
	CallMoveMount:         "move_mount",
	CallFsopen:            "fsopen",
	CallFsconfig:          "fsconfig",
	CallFsmount:           "fsmount",
	CallFspick:            "fspick",
	CallMountSetattr:      "mount_setattr",
	CallUnshare:           "unshare",
	CallSetns:             "setns",
	CallClone:             "clone",
	CallClone3:            "clone3",
	CallIoUringSetup:      "io_uring_setup",
	CallIoUringEnter:      "io_uring_enter",
	CallIoUringRegister:   "io_uring_register",
	CallKill:              "kill",
	CallTkill:             "tkill",
	CallTgkill:            "tgkill",
	CallPidfdSendSignal:   "pidfd_send_signal",
	CallRtSigqueueinfo:    "rt_sigqueueinfo",
	CallRtTgsigqueueinfo:  "rt_tgsigqueueinfo",
	CallSetpriority:       "setpriority",
	CallSchedSetscheduler: "sched_setscheduler",
	CallSchedSetparam:     "sched_setparam",
	CallSchedSetattr:      "sched_setattr",
	CallSchedSetaffinity:  "sched_setaffinity",
	CallIoprioSet:         "ioprio_set",
	CallPrlimit64:         "prlimit64",
	CallPtrace:            "ptrace",
	CallProcessVMReadv:    "process_vm_readv",
	CallProcessVMWritev:   "process_vm_writev",
	CallPidfdGetfd:        "pidfd_getfd",
	CallPidfdOpen:         "pidfd_open",
	CallProcessMadvise:    "process_madvise",
	CallKcmp:              "kcmp",
	CallReboot:            "reboot",
	CallKexecLoad:         "kexec_load",
	CallKexecFileLoad:     "kexec_file_load",
	CallSwapon:            "swapon",
	CallSwapoff:           "swapoff",
	CallSettimeofday:      "settimeofday",
	CallClockSettime:      "clock_settime",
	CallClockAdjtime:      "clock_adjtime",
	CallAdjtimex:          "adjtimex",
	CallSethostname:       "sethostname",
	CallSetdomainname:     "setdomainname",
	CallInitModule:        "init_module",
	CallFinitModule:       "finit_module",
	CallDeleteModule:      "delete_module",
	CallBPF:               "bpf",
	CallPerfEventOpen:     "perf_event_open",
	CallUserfaultfd:       "userfaultfd",
	CallFanotifyInit:      "fanotify_init",
	CallQuotactl:          "quotactl",
	CallQuotactlFD:        "quotactl_fd",
	CallSyslog:            "syslog",
	CallAcct:              "acct",
	CallVhangup:           "vhangup",
	CallIopl:              "iopl",
	CallIoperm:            "ioperm",
	CallKeyctl:            "keyctl",
	CallAddKey:            "add_key",
	CallRequestKey:        "request_key",
}

// Numbers of the calls by architecture, -1 where it has none. Sources: arch/x86/entry/syscalls/syscall_64.tbl
// and scripts/syscall.tbl of Linux 6.17.
var amd64Numbers = [numCalls]int32{
	CallUnknown:           -1,
	CallOpenat:            257,
	CallOpen:              2,
	CallOpenat2:           437,
	CallCreat:             85,
	CallExecve:            59,
	CallExecveat:          322,
	CallExit:              60,
	CallExitGroup:         231,
	CallUnlink:            87,
	CallUnlinkat:          263,
	CallRmdir:             84,
	CallRename:            82,
	CallRenameat:          264,
	CallRenameat2:         316,
	CallLink:              86,
	CallLinkat:            265,
	CallSymlink:           88,
	CallSymlinkat:         266,
	CallMkdir:             83,
	CallMkdirat:           258,
	CallMknod:             133,
	CallMknodat:           259,
	CallTruncate:          76,
	CallFtruncate:         77,
	CallChmod:             90,
	CallFchmod:            91,
	CallFchmodat:          268,
	CallFchmodat2:         452,
	CallChown:             92,
	CallFchown:            93,
	CallLchown:            94,
	CallFchownat:          260,
	CallUtime:             132,
	CallUtimes:            235,
	CallFutimesat:         261,
	CallUtimensat:         280,
	CallSetxattr:          188,
	CallLsetxattr:         189,
	CallFsetxattr:         190,
	CallSetxattrat:        463,
	CallRemovexattr:       197,
	CallLremovexattr:      198,
	CallFremovexattr:      199,
	CallRemovexattrat:     466,
	CallFileSetattr:       469,
	CallBind:              49,
	CallConnect:           42,
	CallSocket:            41,
	CallSocketpair:        53,
	CallSendto:            44,
	CallSendmsg:           46,
	CallSendmmsg:          307,
	CallIoctl:             16,
	CallPrctl:             157,
	CallShmget:            29,
	CallSemget:            64,
	CallMsgget:            68,
	CallMqOpen:            240,
	CallMqUnlink:          241,
	CallSetrlimit:         160,
	CallFork:              57,
	CallVfork:             58,
	CallNameToHandleAt:    303,
	CallOpenByHandleAt:    304,
	CallMount:             165,
	CallUmount2:           166,
	CallPivotRoot:         155,
	CallChroot:            161,
	CallOpenTree:          428,
	CallOpenTreeAttr:      467,
	CallMoveMount:         429,
	CallFsopen:            430,
	CallFsconfig:          431,
	CallFsmount:           432,
	CallFspick:            433,
	CallMountSetattr:      442,
	CallUnshare:           272,
	CallSetns:             308,
	CallClone:             56,
	CallClone3:            435,
	CallIoUringSetup:      425,
	CallIoUringEnter:      426,
	CallIoUringRegister:   427,
	CallKill:              62,
	CallTkill:             200,
	CallTgkill:            234,
	CallPidfdSendSignal:   424,
	CallRtSigqueueinfo:    129,
	CallRtTgsigqueueinfo:  297,
	CallSetpriority:       141,
	CallSchedSetscheduler: 144,
	CallSchedSetparam:     142,
	CallSchedSetattr:      314,
	CallSchedSetaffinity:  203,
	CallIoprioSet:         251,
	CallPrlimit64:         302,
	CallPtrace:            101,
	CallProcessVMReadv:    310,
	CallProcessVMWritev:   311,
	CallPidfdGetfd:        438,
	CallPidfdOpen:         434,
	CallProcessMadvise:    440,
	CallKcmp:              312,
	CallReboot:            169,
	CallKexecLoad:         246,
	CallKexecFileLoad:     320,
	CallSwapon:            167,
	CallSwapoff:           168,
	CallSettimeofday:      164,
	CallClockSettime:      227,
	CallClockAdjtime:      305,
	CallAdjtimex:          159,
	CallSethostname:       170,
	CallSetdomainname:     171,
	CallInitModule:        175,
	CallFinitModule:       313,
	CallDeleteModule:      176,
	CallBPF:               321,
	CallPerfEventOpen:     298,
	CallUserfaultfd:       323,
	CallFanotifyInit:      300,
	CallQuotactl:          179,
	CallQuotactlFD:        443,
	CallSyslog:            103,
	CallAcct:              163,
	CallVhangup:           153,
	CallIopl:              172,
	CallIoperm:            173,
	CallKeyctl:            250,
	CallAddKey:            248,
	CallRequestKey:        249,
}
var arm64Numbers = [numCalls]int32{
	CallUnknown:           -1,
	CallOpenat:            56,
	CallOpen:              -1,
	CallOpenat2:           437,
	CallCreat:             -1,
	CallExecve:            221,
	CallExecveat:          281,
	CallExit:              93,
	CallExitGroup:         94,
	CallUnlink:            -1,
	CallUnlinkat:          35,
	CallRmdir:             -1,
	CallRename:            -1,
	CallRenameat:          38,
	CallRenameat2:         276,
	CallLink:              -1,
	CallLinkat:            37,
	CallSymlink:           -1,
	CallSymlinkat:         36,
	CallMkdir:             -1,
	CallMkdirat:           34,
	CallMknod:             -1,
	CallMknodat:           33,
	CallTruncate:          45,
	CallFtruncate:         46,
	CallChmod:             -1,
	CallFchmod:            52,
	CallFchmodat:          53,
	CallFchmodat2:         452,
	CallChown:             -1,
	CallFchown:            55,
	CallLchown:            -1,
	CallFchownat:          54,
	CallUtime:             -1,
	CallUtimes:            -1,
	CallFutimesat:         -1,
	CallUtimensat:         88,
	CallSetxattr:          5,
	CallLsetxattr:         6,
	CallFsetxattr:         7,
	CallSetxattrat:        463,
	CallRemovexattr:       14,
	CallLremovexattr:      15,
	CallFremovexattr:      16,
	CallRemovexattrat:     466,
	CallFileSetattr:       469,
	CallBind:              200,
	CallConnect:           203,
	CallSocket:            198,
	CallSocketpair:        199,
	CallSendto:            206,
	CallSendmsg:           211,
	CallSendmmsg:          269,
	CallIoctl:             29,
	CallPrctl:             167,
	CallShmget:            194,
	CallSemget:            190,
	CallMsgget:            186,
	CallMqOpen:            180,
	CallMqUnlink:          181,
	CallSetrlimit:         164,
	CallNameToHandleAt:    264,
	CallOpenByHandleAt:    265,
	CallMount:             40,
	CallUmount2:           39,
	CallPivotRoot:         41,
	CallChroot:            51,
	CallOpenTree:          428,
	CallOpenTreeAttr:      467,
	CallMoveMount:         429,
	CallFsopen:            430,
	CallFsconfig:          431,
	CallFsmount:           432,
	CallFspick:            433,
	CallMountSetattr:      442,
	CallUnshare:           97,
	CallSetns:             268,
	CallClone:             220,
	CallClone3:            435,
	CallIoUringSetup:      425,
	CallIoUringEnter:      426,
	CallIoUringRegister:   427,
	CallKill:              129,
	CallTkill:             130,
	CallTgkill:            131,
	CallPidfdSendSignal:   424,
	CallRtSigqueueinfo:    138,
	CallRtTgsigqueueinfo:  240,
	CallSetpriority:       140,
	CallSchedSetscheduler: 119,
	CallSchedSetparam:     118,
	CallSchedSetattr:      274,
	CallSchedSetaffinity:  122,
	CallIoprioSet:         30,
	CallPrlimit64:         261,
	CallPtrace:            117,
	CallProcessVMReadv:    270,
	CallProcessVMWritev:   271,
	CallPidfdGetfd:        438,
	CallPidfdOpen:         434,
	CallProcessMadvise:    440,
	CallKcmp:              272,
	CallReboot:            142,
	CallKexecLoad:         104,
	CallKexecFileLoad:     294,
	CallSwapon:            224,
	CallSwapoff:           225,
	CallSettimeofday:      170,
	CallClockSettime:      112,
	CallClockAdjtime:      266,
	CallAdjtimex:          171,
	CallSethostname:       161,
	CallSetdomainname:     162,
	CallInitModule:        105,
	CallFinitModule:       273,
	CallDeleteModule:      106,
	CallBPF:               280,
	CallPerfEventOpen:     241,
	CallUserfaultfd:       282,
	CallFanotifyInit:      262,
	CallQuotactl:          60,
	CallQuotactlFD:        443,
	CallSyslog:            116,
	CallAcct:              89,
	CallVhangup:           58,
	CallIopl:              -1,
	CallIoperm:            -1,
	CallKeyctl:            219,
	CallAddKey:            217,
	CallRequestKey:        218,
}
