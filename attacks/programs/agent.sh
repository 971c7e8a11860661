#!/bin/sh
# F4: ask the user's ssh-agent for the keys that it holds.
SSH_AUTH_SOCK="$1" exec ssh-add -l
