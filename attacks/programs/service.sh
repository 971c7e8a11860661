#!/bin/sh
# F3: have a service outside do it: a session bus starts it for whoever asks. Asked are the bus
# that the environment names, then the one outside by its address.
ask() {
	dbus-send --session --print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.StartServiceByName string:org.sandglass.Attacked uint32:0
}
ask
DBUS_SESSION_BUS_ADDRESS="$1" ask
