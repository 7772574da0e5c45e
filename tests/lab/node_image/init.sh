#!/bin/sh
# Runs at every boot of a full node: a new boot id, sshd, then the Docker engine.
# The node outlives its engine, as a real machine does.
set -eu

cat /proc/sys/kernel/random/uuid >/etc/lab/boot_id
mount --bind /etc/lab/boot_id /proc/sys/kernel/random/boot_id

install -d -m 700 /root /root/.ssh
[ -e /root/.ssh/authorized_keys ] ||
    install -m 600 /etc/lab/authorized_keys /root/.ssh/authorized_keys
for person in worker sudoer guest; do
    install -d -o "$person" -m 700 "/home/$person/.ssh"
    [ -e "/home/$person/.ssh/authorized_keys" ] || install -o "$person" -m 600 \
        /etc/lab/authorized_keys "/home/$person/.ssh/authorized_keys"
done
install -d -m 755 /run/sshd
chmod 600 /etc/lab/ssh_host_ed25519_key
/usr/sbin/sshd

# Containers of the node go below the node's own cgroup: pausing the node must freeze
# them, and its end must remove their cgroups.
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    own=$(sed -n 's/^0:://p' /proc/self/cgroup)
    # A version 2 group with processes of its own cannot hand controllers to children.
    mkdir -p "/sys/fs/cgroup$own/init"
    for pid in $(cat "/sys/fs/cgroup$own/cgroup.procs"); do
        echo "$pid" >"/sys/fs/cgroup$own/init/cgroup.procs" 2>/dev/null || true
    done
    sed 's/[^ ]*/+&/g' "/sys/fs/cgroup$own/cgroup.controllers" \
        >"/sys/fs/cgroup$own/cgroup.subtree_control" || true
else
    own=$(sed -n 's/^[0-9]*:freezer://p' /proc/self/cgroup)
fi
dockerd --exec-opt native.cgroupdriver=cgroupfs --cgroup-parent="$own/inner" \
    >>/var/log/dockerd.log 2>&1 &

exec sleep infinity
