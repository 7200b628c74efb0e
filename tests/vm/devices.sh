#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs in the guest: shows with the stock tools that its devices work, so that what fails after
# this is not the guest's fault. Prints TAP.
set -u

n=0
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# check NAME COMMAND...: one case; the command's output is told when it fails.
check()
{
	local name=$1 result=ok
	shift
	n=$((n + 1))
	if ! "$@" >"$tmp/log" 2>&1; then
		result="not ok"
		sed 's/^/# /' "$tmp/log"
	fi
	echo "$result $n - $name"
}

# Waits until a command succeeds, at most 20 s.
wait_for()
{
	local end=$((SECONDS + 20))
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $end ] || return 1
		sleep 0.02
	done
}

listens()
{
	ss -Hltn "sport = :$1" | grep -q .
}

listens_rdma()
{
	rdma resource show cm_id | grep -q "state LISTEN.*:$1 "
}

# pair READY PORT SERVER... -- CLIENT...: both must end well.
pair()
{
	local ready=$1 port=$2 server=() pid
	shift 2
	while [ "$1" != -- ]; do
		server+=("$1")
		shift
	done
	shift
	timeout 60 "${server[@]}" &
	pid=$!
	wait_for "$ready" "$port" && timeout 60 "$@" && wait $pid
}

# The device, active, with its IPv4 address as a RoCE v2 entry of the GID table.
has_device()
{
	ibv_devinfo -v -d "$1" >"$tmp/device" || return 1
	cat "$tmp/device"
	grep -q "PORT_ACTIVE" "$tmp/device" &&
		grep -q "GID\[  1\]:[[:space:]]*::ffff:$2, RoCE v2" "$tmp/device"
}

# pingpong PORT DEVICE DEVICE
pingpong()
{
	pair listens "$1" ibv_rc_pingpong -d "$2" -g 1 -n 100 -p "$1" -- \
		ibv_rc_pingpong -d "$3" -g 1 -n 100 -p "$1" 127.0.0.1
}

# ping PORT ADDRESS
ping_by_cm()
{
	pair listens_rdma "$1" rping -s -a "$2" -p "$1" -C 3 -- rping -c -a "$2" -p "$1" -C 3 -v
}

write_bw()
{
	pair listens "$1" ib_write_bw -d "$2" -x 1 -n 100 -s 65536 -p "$1" -F -- \
		ib_write_bw -d "$3" -x 1 -n 100 -s 65536 -p "$1" -F 127.0.0.1
}

echo "1..9"
check "device rxe0" has_device rxe0 10.77.0.1
check "device rxe1" has_device rxe1 10.77.0.2
check "pingpong on one device" pingpong 18001 rxe0 rxe0
check "pingpong over the cable" pingpong 18002 rxe0 rxe1
check "rdma_cm to the first address" ping_by_cm 18003 10.77.0.1
check "rdma_cm to the second address" ping_by_cm 18004 10.77.0.2
check "bandwidth on one device" write_bw 18005 rxe0 rxe0
check "bandwidth over the cable" write_bw 18006 rxe0 rxe1
check "the locked-memory limit is off" test "$(ulimit -l)" = unlimited
