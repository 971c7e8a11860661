package core

import "slices"

// Surface names a place where something could get in or out of a box, as a dotted
// path: a family and a member ("files.write"). The set is open: a newer supervisor
// may report a surface that an older dashboard does not know.
type Surface string

// The surfaces that this version reports.
const (
	FilesRead        Surface = "files.read"        // a file is opened for reading
	FilesWrite       Surface = "files.write"       // a file, directory, node or its metadata is changed
	FilesExec        Surface = "files.exec"        // a program is executed
	FilesHandle      Surface = "files.handle"      // a file is named by handle, past every path
	ProcessLife      Surface = "process.life"      // a process starts or ends
	SystemKernel     Surface = "system.kernel"     // mounts, namespaces, io_uring
	SystemABI        Surface = "system.abi"        // a call through a foreign ABI (i386, x32)
	SandboxSelf      Surface = "sandbox.self"      // the sandbox's own state
	SandboxLifecycle Surface = "sandbox.lifecycle" // what the supervisor itself did to the box
)

var surfaces = []Surface{FilesRead, FilesWrite, FilesExec, FilesHandle, ProcessLife, SystemKernel, SystemABI, SandboxSelf, SandboxLifecycle}

// Surfaces lists the surfaces that this version reports, sorted by name.
func Surfaces() []Surface { s := slices.Clone(surfaces); slices.Sort(s); return s }

// Action says what an operation does on its surface: a verb of the field.
type Action string

// The actions that this version reports.
const (
	ActRead        Action = "read"         // open for reading
	ActWrite       Action = "write"        // open an existing file for writing
	ActCreate      Action = "create"       // open with O_CREAT or O_TMPFILE, creat
	ActPath        Action = "path"         // open with O_PATH: a place, not its content
	ActTruncate    Action = "truncate"     // truncate, ftruncate
	ActDelete      Action = "delete"       // unlink
	ActRmdir       Action = "rmdir"        // remove a directory
	ActRename      Action = "rename"       // target: the old name; detail.to: the new one
	ActExchange    Action = "exchange"     // RENAME_EXCHANGE
	ActLink        Action = "link"         // target: the new name; detail.from: the existing file
	ActSymlink     Action = "symlink"      // target: the new name; detail.from: the text of the link
	ActMkdir       Action = "mkdir"        //
	ActMknod       Action = "mknod"        //
	ActBind        Action = "bind"         // a path socket is made
	ActChmod       Action = "chmod"        //
	ActChown       Action = "chown"        //
	ActUtime       Action = "utime"        //
	ActSetxattr    Action = "setxattr"     // target: the file; detail.name: the attribute
	ActRemovexattr Action = "removexattr"  //
	ActSetattr     Action = "setattr"      // file_setattr(2): inode flags
	ActHandle      Action = "handle"       // name_to_handle_at, open_by_handle_at
	ActExec        Action = "exec"         // target: the program; detail.argv
	ActStart       Action = "start"        // a process was first seen; detail.ppid
	ActExit        Action = "exit"         // a process ended; detail.code or detail.signal
	ActMount       Action = "mount"        // mount family
	ActNamespace   Action = "namespace"    // unshare, setns, clone with a namespace flag, chroot, pivot_root
	ActIOUring     Action = "io_uring"     //
	ActSyscall     Action = "syscall"      // a call that is refused as such; target: its name
	ActBegin       Action = "begin"        // a session begins; detail: command, stdio, walls
	ActEnd         Action = "end"          // a session ends; detail.code
	ActSlow        Action = "backpressure" // the log could not keep up and the box was slowed down
)
