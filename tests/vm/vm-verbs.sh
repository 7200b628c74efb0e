#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs a command where libibverbs and librdmacm work, on a machine whose own kernel has no RDMA:
# in a throw-away guest that loads Soft-RoCE and sees the host's own file system.
#
#   vm-verbs.sh [-m MEM] [-t SECONDS] [-c CPUS] [-o DIR]... [-k DIR] [-l FILE] [-u LINUX]
#               -- COMMAND [ARGS...]
#
# Two engines: QEMU's plain emulation (no /dev/kvm needed) of Debian's stock kernel, or with -u a
# user-mode Linux. docs/testing.md says what they need, how fast they are and what the guest looks
# like; `vm-verbs.sh -h` what the options mean.
#
# Exit status: the command's own; 123 QEMU itself crashed; 124 timed out; 125 the guest could not
# be run; 126 something that it needs is missing here.
set -u

usage()
{
	cat <<-'USAGE'
	usage: vm-verbs.sh [OPTIONS] -- COMMAND [ARGS...]
	  -m MEM      the guest's memory (default 2G; what is written lives in up to half of it)
	  -t SECONDS  give up after that long, boot included (default 300): exit status 124
	  -c CPUS     the guest's processors (default: the host's, at most 4; one with -u)
	  -o DIR      a directory that the command may really write to, at the same path in the
	              guest (repeatable); what it writes elsewhere is gone when it ends
	  -k DIR      the kernel unpacked there (dpkg-deb -x linux-image-*.deb DIR), not the
	              newest one under /boot
	  -l FILE     leave the guest's console there
	  -u LINUX    this user-mode Linux (build-uml.sh makes one), not QEMU
	USAGE
}

# fail STATUS WORDS...
fail()
{
	local status=$1
	shift
	echo "vm-verbs: $*" >&2
	exit "$status"
}

parse_options()
{
	local option
	mem=2G limit=300 kernel_root='' uml='' console='' outs=()
	cpus=$(nproc)
	[ "$cpus" -le 4 ] || cpus=4
	while getopts m:t:c:o:k:l:u:h option; do
		case $option in
		m) mem=$OPTARG ;;
		t) limit=$OPTARG ;;
		c) cpus=$OPTARG ;;
		k) kernel_root=${OPTARG%/} ;;
		l) console=$OPTARG ;;
		u) uml=$OPTARG ;;
		o) outs+=("$(readlink -e -- "$OPTARG")") || fail 125 "no directory $OPTARG" ;;
		h) usage; exit 0 ;;
		*) usage >&2; exit 125 ;;
		esac
	done
	n_options=$((OPTIND - 1))
}

# need FILE|PROGRAM PACKAGE
need()
{
	[ -e "$1" ] || command -v "$1" >/dev/null 2>&1 || missing+=("$2")
}

# The newest kernel that has Soft-RoCE: the cloud flavour has not.
find_kernel()
{
	local dir
	kernel_version=
	while read -r dir; do
		[ -e "$kernel_root/boot/vmlinuz-${dir##*/}" ] || continue
		[ -d "$dir/kernel/drivers/infiniband/sw/rxe" ] || continue
		kernel_version=${dir##*/}
	done < <(find "$kernel_root/lib/modules" -mindepth 1 -maxdepth 1 2>/dev/null | sort -V)
	[ -n "$kernel_version" ] ||
		missing+=("linux-image-amd64${kernel_root:+ (none with rdma_rxe in $kernel_root)}")
}

check_packages()
{
	missing=()
	need rdma iproute2
	need /etc/libibverbs.d/rxe.driver ibverbs-providers
	if [ -n "$uml" ]; then
		[ -x "$uml" ] || fail 126 "no user-mode Linux at $uml"
		uml=$(readlink -f -- "$uml")
	else
		need qemu-system-x86_64 qemu-system-x86
		need modprobe kmod
		need cpio cpio
		need xz xz-utils
		if ! /bin/busybox insmod --help >/dev/null 2>&1 || ldd /bin/busybox >/dev/null 2>&1
		then
			missing+=(busybox-static)
		fi
		find_kernel
	fi
	[ ${#missing[@]} -eq 0 ] || fail 126 "missing Debian packages: ${missing[*]}"
}

# shellcheck disable=SC2317 # called by the trap
clean_up()
{
	if [ -n "$pid" ]; then
		kill "$pid"
		wait "$pid"
	fi 2>/dev/null
	rm -rf "$tmp"
}

# The directory that the guest reads its orders from and writes the command's exit status to.
write_control()
{
	control=$tmp/control
	mkdir "$control"
	if [ ${#outs[@]} -gt 0 ]; then
		printf '%s\n' "${outs[@]}"
	fi >"$control/outs"
	export -p >"$control/env"
	cp "$here/guest-main.sh" "$control/main"
	{
		printf 'cd %q || exit 125\nexec' "$PWD"
		printf ' %q' "$@"
		echo
	} >"$control/command"
}

# The engine's command, for user-mode Linux: descriptors 3 and 4 are the command's output.
prepare_uml()
{
	cp "$here/guest-init-uml.sh" "$tmp/init"
	chmod +x "$tmp/init"
	# shellcheck disable=SC2054 # the commas are meant
	engine=("$uml" "mem=$mem" rootfstype=hostfs rootflags=/ ro "init=$tmp/init"
		"orders=$control" quiet panic=-1 "uml_dir=$tmp/" con=null con0=null,fd:2
		con1=null,fd:3 con2=null,fd:4)
}

# number OFFSET BYTES: a field of the kernel's header.
number()
{
	od -An -tu"$2" -j "$(($1))" -N "$2" "$kernel" | tr -d ' '
}

# Unpacks the kernel here, as that takes seconds under emulation; an unpacked kernel starts through
# its PVH entry. A kernel packed in some other way unpacks itself.
unpack_kernel()
{
	local start length unpack
	kernel=$kernel_root/boot/vmlinuz-$kernel_version
	start=$((($(number 0x1f1 1) + 1) * 512 + $(number 0x248 4)))
	length=$(($(number 0x24c 4) - 4))
	case $(od -An -tx1 -j $start -N 4 "$kernel" | tr -d ' ') in
	fd377a58) unpack="xz -dc" ;;
	28b52ffd) unpack="zstd -dc" ;;
	*) return ;;
	esac
	if tail -c +$((start + 1)) "$kernel" | head -c $length | $unpack >"$tmp/vmlinux" 2>/dev/null
	then
		kernel=$tmp/vmlinux
	fi
}

# The root that modprobe shall look in; made here when the kernel was unpacked, not installed.
prepare_modules()
{
	local modules=$kernel_root/lib/modules/$kernel_version
	modules_root=${kernel_root:-/}
	[ ! -e "$modules/modules.dep.bin" ] || return 0
	modules_root=$tmp/modules
	mkdir -p "$modules_root/lib/modules/$kernel_version"
	ln -s "$(readlink -f "$modules/kernel")" \
		"$modules"/modules.{builtin,builtin.modinfo,order} \
		"$modules_root/lib/modules/$kernel_version/"
	depmod -b "$modules_root" "$kernel_version" || fail 125 "depmod failed"
}

# Prints `insmod FILE [ARGS]` in load order, with repetitions. Not crc32_pclmul, and no erms in
# qemu_command(): either makes Soft-RoCE twice as slow under emulation.
list_modules()
{
	local module
	for module in virtio_pci virtio_console virtio-rng 9pnet_virtio 9p overlay veth sch_netem \
		crc32_generic rdma_rxe ib_umad rdma_ucm; do
		modprobe -d "$modules_root" -S "$kernel_version" --show-depends "$module" ||
			fail 125 "no module $module of $kernel_version"
	done
}

make_initramfs()
{
	local root=$tmp/initramfs what file args name
	mkdir -p "$root"/{bin,modules,proc,sys,dev,lower,rw,root}
	cp /bin/busybox "$root/bin/"
	prepare_modules
	while read -r what file args; do
		name=${file##*/}
		name=${name%%.ko*}.ko
		if [ "$what" != insmod ] || [ -e "$root/modules/$name" ]; then
			continue
		fi
		case $file in
		*.xz) xz -dc "$file" ;;
		*.zst) zstd -dcq "$file" ;;
		*) cat "$file" ;;
		esac >"$root/modules/$name"
		echo "$name $args" >>"$root/modules/list"
	done < <(list_modules)
	cp "$here/guest-init-qemu.sh" "$root/init"
	chmod +x "$root/init"
	(cd "$root" && find . | cpio -o -H newc --quiet) >"$tmp/initramfs.cpio" ||
		fail 125 "cpio failed"
}

# share PATH TAG [OPTION]: the words behind -virtfs.
share()
{
	echo "local,path=${1//,/,,},mount_tag=$2,security_model=none,multidevs=remap${3:-}"
}

prepare_qemu()
{
	local i
	unpack_kernel
	make_initramfs
	mkfifo "$tmp"/{out,err}.{in,out}
	# shellcheck disable=SC2054
	engine=(qemu-system-x86_64 -M q35 -accel "tcg,thread=multi" -cpu max,-erms -smp "$cpus"
		-m "$mem" -nodefaults -no-user-config -display none -monitor none -no-reboot
		-kernel "$kernel" -initrd "$tmp/initramfs.cpio"
		-append "console=ttyS0 quiet panic=-1 oops=panic mitigations=off \
cryptomgr.notests tsc=reliable"
		-serial "file:$console" -device virtio-rng-pci -device virtio-serial-pci
		-chardev "pipe,id=out,path=$tmp/out" -device "virtserialport,chardev=out,name=out"
		-chardev "pipe,id=err,path=$tmp/err" -device "virtserialport,chardev=err,name=err"
		-virtfs "$(share / root ,readonly=on)" -virtfs "$(share "$control" control)")
	for i in "${!outs[@]}"; do
		engine+=(-virtfs "$(share "${outs[i]}" "out$i")")
	done
	cat "$tmp/out.out" &
	readers=($!)
	cat "$tmp/err.out" >&2 &
	readers+=($!)
}

run_engine()
{
	local status
	timeout -k 5 "$limit" "${engine[@]}" 3>&1 4>&2 >>"$console" 2>&1 </dev/null &
	pid=$!
	wait "$pid" 2>/dev/null
	status=$?
	pid=
	if [ -z "$uml" ]; then
		# The readers wait for a writer, should QEMU never have opened the pipes.
		: <>"$tmp/out.out" <>"$tmp/err.out"
		wait "${readers[@]}"
	fi
	[ ! -s "$control/status" ] || exit "$(<"$control/status")"
	case $status in
	124 | 137) fail 124 "timed out after $limit s" ;;
	esac
	tail -20 "$console" >&2
	# A guest that panics ends QEMU in good order; a signal is QEMU's own fault.
	case $status in
	132 | 134 | 135 | 136 | 139) [ -n "$uml" ] || fail 123 "QEMU crashed ($status)" ;;
	esac
	fail 125 "the guest ended with $status, not by the command's end; its console is above"
}

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
PATH=$PATH:/usr/sbin:/sbin
parse_options "$@"
shift "$n_options"
if [ $# -eq 0 ]; then
	usage >&2
	exit 125
fi
check_packages
pid=
tmp=$(mktemp -d "${TMPDIR:-/tmp}/vm-verbs.XXXXXX") || fail 125 "mktemp failed"
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
console=${console:-$tmp/console}
: >"$console" || fail 125 "cannot write $console"
write_control "$@"
if [ -n "$uml" ]; then
	prepare_uml
else
	prepare_qemu
fi
run_engine
