#!/bin/sh
# Starts the node's Docker engine, on a small disk if the lab gave it one; waits for nothing.
set -eu

if [ -e /etc/lab/engine_mib ] && ! grep -q '^lab /var/lib/docker ' /proc/mounts; then
    mount -t tmpfs -o "mode=710,size=$(cat /etc/lab/engine_mib)m" lab /var/lib/docker
fi
setsid dockerd --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent="$(cat /etc/lab/cgroup)/inner" \
    >>/var/log/dockerd.log 2>&1 </dev/null &
