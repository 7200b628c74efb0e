#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# The guest's last stage, the same for both engines: on the host's root, with the control directory
# at /run/vm-verbs. Makes two Soft-RoCE devices, the ends of one cable:
#
#   rxe0 on eth0, 10.77.0.1, vm0        rxe1 on eth1, 10.77.0.2, vm1
#
# then runs the command and powers off.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# port NAME NUMBER: the device that carries this stream to the host.
port()
{
	local dir
	if [ -e /run/uml ]; then
		echo "/dev/tty$2"
		return
	fi
	for dir in /sys/class/virtio-ports/*; do
		[ "$(<"$dir/name")" != "$1" ] || echo "/dev/${dir##*/}"
	done
}

# neighbour ADDRESS DEVICE OTHER: who is at the other end. The answer to a question would arrive
# before the question's sender begins to wait for it, and rdma_resolve_addr() would use up its time.
neighbour()
{
	ip neigh replace "$1" dev "$2" lladdr "$(<"/sys/class/net/$3/address")" nud permanent
}

# One kernel sends to itself over the cable, which needs some tolerance.
make_network()
{
	local scope i
	for scope in all default; do
		echo 1 >/proc/sys/net/ipv4/conf/$scope/accept_local
		echo 0 >/proc/sys/net/ipv4/conf/$scope/rp_filter
		echo 0 >/proc/sys/net/ipv6/conf/$scope/accept_dad
	done
	echo vm0 >/proc/sys/kernel/hostname
	ip link set lo up
	ip link add eth0 mtu 4500 type veth peer name eth1 mtu 4500
	for i in 0 1; do
		ip addr add 10.77.0.$((i + 1))/24 dev eth$i
		ip link set eth$i up
		echo "10.77.0.$((i + 1)) vm$i" >>/etc/hosts
	done
	neighbour 10.77.0.2 eth0 eth1
	neighbour 10.77.0.1 eth1 eth0
	for i in 0 1; do
		rdma link add rxe$i type rxe netdev eth$i || echo "vm-verbs: no rxe$i"
	done
}

# Pipes, so that the command sees no terminal; something it left running may keep them open.
run_command()
{
	local out err status
	out=$(port out 1)
	err=$(port err 2)
	if [ -e /run/uml ]; then
		stty -F "$out" raw
		stty -F "$err" raw
	fi
	mkfifo /run/out /run/err
	cat /run/out >"$out" &
	cat_out=$!
	cat /run/err >"$err" &
	cat_err=$!
	(
		. /run/vm-verbs/env
		export VM_VERBS=1
		. /run/vm-verbs/command
	) >/run/out 2>/run/err
	status=$?
	(
		sleep 5
		kill $cat_out $cat_err
	) 2>/dev/null &
	wait $cat_out $cat_err 2>/dev/null
	echo $status >/run/vm-verbs/status
	sync
}

exec </dev/null
read -r root_seconds _ </proc/uptime
ulimit -l unlimited
make_network
read -r rxe_seconds _ </proc/uptime
echo "vm-verbs: kernel $(uname -r): root after $root_seconds s, rxe after $rxe_seconds s"
run_command
echo o >/proc/sysrq-trigger
sleep 10
