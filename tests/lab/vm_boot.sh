# Runs as the first process of a virtual machine, at every boot.
# The lab's words are on the kernel's command line: lab.name, lab.addr, lab.gw, lab.nfs.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
for word in $(cat /proc/cmdline); do
    case $word in
    lab.name=*) name=${word#*=} ;;
    lab.addr=*) addr=${word#*=} ;;
    lab.gw=*) gateway=${word#*=} ;;
    lab.nfs=*) server=${word#*=} ;;
    esac
done

mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mountpoint -q /run || mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/sshd /run/rpc_pipefs /shared
echo "$name" >/proc/sys/kernel/hostname
# A disk of its own for root's home, so that it can be filled without harm to the rest.
mount /dev/vdb /root

modprobe -a virtio_net nfs sch_tbf
ip link set lo up
ip address add "$addr" dev eth0
ip link set eth0 up
ip route add default via "$gateway"
/usr/sbin/sshd

# The lab's own line in, which no fault of the network can cut: one command a line.
(
    stty -F /dev/ttyS1 raw -echo
    exec 3<>/dev/ttyS1
    while IFS= read -r line <&3; do
        sh -c "$line" >/run/lab.out 2>&1 </dev/null
        status=$?
        { cat /run/lab.out; printf '\n@@%d\n' "$status"; } >&3
    done
) &

if [ "$server" = self ]; then
    modprobe nfsd
    mount -t nfsd nfsd /proc/fs/nfsd
    mount -t rpc_pipefs rpc_pipefs /run/rpc_pipefs
    # Clients of a server that restarts may go on after 10 s instead of 90.
    echo 10 >/proc/fs/nfsd/nfsv4leasetime
    echo 10 >/proc/fs/nfsd/nfsv4gracetime
    nfsdcld
    exportfs -ra
    rpc.mountd
    # Version 3 would want a port mapper.
    rpc.nfsd --no-udp --no-nfs-version 3 4
else
    until mount -t nfs4 -o vers=4.2 "$server:/" /shared 2>/dev/null; do sleep 0.5; done
fi
touch /run/lab.ready
while :; do sleep 1000 & wait; done
