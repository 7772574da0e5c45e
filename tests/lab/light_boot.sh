# The first process of a light node turns its private view of this machine into a
# machine of its own, then becomes the node's sshd.
# usage: light_boot.sh NODE_DIR SHARED_DIR LABS_DIR NAME SSHD
set -eu
node=$1 shared=$2 labs=$3 name=$4 sshd=$5

mount -t proc proc /proc

# What the node keeps is held at /mnt while the rest is covered.
mount -t tmpfs -o mode=700,size=64k lab /mnt
mkdir /mnt/node /mnt/shared /mnt/cgroup
mount --rbind "$node" /mnt/node
mount --bind "$shared" /mnt/shared

# /sys must show the node's own network card, not this machine's.
mount --rbind /sys/fs/cgroup /mnt/cgroup
mount -t sysfs sysfs /sys
mount --move /mnt/cgroup /sys/fs/cgroup

# Other nodes' disks would stay busy for as long as this node lives, and the
# controller's private key is not for nodes to see.
while read -r _ target _; do
    case $target in "$labs"/*) umount -l "$target" 2>/dev/null || true ;; esac
done </proc/self/mounts
mount -t tmpfs -o mode=755,size=64k lab "$labs"
mkdir -p "$node" "$shared"
mount --move /mnt/node "$node"
mount --move /mnt/shared "$shared"
umount /mnt

mount --bind "$node/boot_id" /proc/sys/kernel/random/boot_id
for file in passwd shadow hosts hostname machine-id resolv.conf; do
    [ ! -e "/etc/$file" ] || mount --bind "$node/$file" "/etc/$file"
done
mount -t tmpfs -o mode=1777,size=256m lab /dev/shm
mount -t tmpfs -o mode=755,size=16m lab /run
mkdir -m 755 /run/sshd
mkdir -m 1777 /run/lock
echo "$name" >/proc/sys/kernel/hostname
cd "$node/home"
exec "$sshd" -D -e -f "$node/sshd_config"
