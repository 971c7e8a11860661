package driver

// oNofollow differs by architecture (asm/fcntl.h).
const oNofollow = 0x20000
