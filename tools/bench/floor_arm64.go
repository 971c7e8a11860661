package main

var floorCallsOfArch []uint32
