#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A cable that delays, reorders and loses frames, for kernels without netem.

  wire.py PID PID DELAY_MS JITTER_MS LOSS

Makes a tap device eth0 in the network namespaces of two processes and carries frames between them:
each waits for DELAY_MS, more or less by JITTER_MS, or is lost with probability LOSS. The frames are
those that the two kernels' TCP sends, so retransmission and reordering are the real ones. Prints
"up", and when its standard input ends how many frames were carried and lost.
"""
import ctypes
import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time

TUNSETIFF, IFF_TAP, IFF_NO_PI, CLONE_NEWNET = 0x400454ca, 2, 0x1000, 0x40000000
FRAME_BYTES = 65536


def enter(libc, path):
    with open(path, 'rb') as namespace:
        if libc.setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f'setns {path}')


def open_tap(libc, pid):
    """A tap device in the namespace of a process: what its kernel sends is read here."""
    enter(libc, f'/proc/{pid}/ns/net')
    tap = os.open('/dev/net/tun', os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack('16sH22x', b'eth0', IFF_TAP | IFF_NO_PI))
    return tap


def write_due(waiting, n_carried):
    """Delivers frames whose time has come; the number of all that were carried."""
    while waiting and waiting[0][0] <= time.monotonic():
        _, _, tap, frame = heapq.heappop(waiting)
        try:
            os.write(tap, frame)
            n_carried += 1
        except OSError:
            pass # the other end is down, or full: the frame is lost as on any cable
    return n_carried


def carry(taps, delay, jitter, loss):
    """Carries until the standard input ends."""
    chance = random.Random(1)
    waiting = [] # (when, number, to whom, frame)
    n = n_lost = n_carried = 0
    while True:
        left = max(0, waiting[0][0] - time.monotonic()) if waiting else None
        ready = select.select([0, *taps], [], [], left)[0]
        if 0 in ready:
            print(f'carried {n_carried} lost {n_lost}', flush=True)
            return
        for tap in ready:
            frame = os.read(tap, FRAME_BYTES)
            n += 1
            if chance.random() < loss:
                n_lost += 1
                continue
            when = time.monotonic() + chance.uniform(delay - jitter, delay + jitter)
            heapq.heappush(waiting, (when, n, taps[tap == taps[0]], frame))
        n_carried = write_due(waiting, n_carried)


def main():
    libc = ctypes.CDLL(None, use_errno=True)
    taps = [open_tap(libc, pid) for pid in sys.argv[1:3]]
    delay, jitter, loss = map(float, sys.argv[3:])
    print('up', flush=True)
    carry(taps, delay / 1000, jitter / 1000, loss)


if __name__ == '__main__':
    main()
