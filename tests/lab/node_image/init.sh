#!/bin/sh
# Runs at every boot of a full node: a new boot id, homes, sshd, then the Docker engine.
# The node outlives its engine, as a real machine does.
set -eu

# As systemd has it: from private mounts an engine makes no container that should follow what is mounted later.
mount --make-rshared /
cat /proc/sys/kernel/random/uuid >/etc/lab/boot_id
mount --bind /etc/lab/boot_id /proc/sys/kernel/random/boot_id

# as PERSON COMMAND...
as() {
    who=$1
    shift
    setpriv --reuid "$who" --regid "$who" --init-groups --reset-env "$@"
}

# The volume behind worker's home, when all nodes share it.
own_volume() { chown worker:worker "$1" && chmod 700 "$1"; }

install -d -m 700 /root
if mountpoint -q /export/worker; then
    # What worker mounts is closed to root, as on a root-squashed export: without
    # allow_other the kernel refuses it to everybody else.
    own_volume /export/worker
    chmod 666 /dev/fuse
    mountpoint -q /home/worker || find /home/worker -mindepth 1 -delete
    as worker bindfs --no-allow-other -o attr_timeout=0 -o entry_timeout=0 /export/worker /home/worker
elif mountpoint -q /home/worker; then
    own_volume /home/worker
fi

# The shared directory of a lab where it can hang: stopping this process freezes it.
if mountpoint -q /export/shared; then
    mkdir -p /shared
    setsid bindfs -f -o attr_timeout=0 -o entry_timeout=0 /export/shared /shared </dev/null >/var/log/shared.log 2>&1 &
    echo $! >/run/lab-shared.pid
    until mountpoint -q /shared; do sleep 0.05; done
fi

# Each file appears in one step: other nodes may do the same in the same home.
let_in='
set -e; cd
for file in /etc/skel/.[a-z]*; do
    [ -e "${file##*/}" ] || { cp "$file" ".lab-$1" && mv ".lab-$1" "${file##*/}"; }
done
umask 077
mkdir -p .ssh
[ -e .ssh/authorized_keys ] || {
    cp /etc/lab/authorized_keys ".ssh/.lab-$1" && mv ".ssh/.lab-$1" .ssh/authorized_keys
}
'
for person in root worker sudoer guest; do
    as "$person" sh -c "$let_in" sh "$(hostname)"
done
printf 'typist:%s\n' "$(cat /etc/lab/password)" | chpasswd
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
echo "$own" >/etc/lab/cgroup
[ ! -e /usr/sbin/dockerd ] || lab-engine

exec sleep infinity
