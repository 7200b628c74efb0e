# SPDX-License-Identifier: Apache-2.0
"""Hosts that are namespaces, their network, and the ranks on them.

A host is a network, a mount and (unless asked otherwise) a PID namespace, held by a process that
reads from a pipe of ours. The kernel gives namespaces no names and takes everything away when that
process ends, as it does when we end in whatever way: nothing can be left behind or be in the way
of another run. Two hosts are joined by a veth pair, more by a bridge in a namespace of its own.

Ranks are net_rank programs: commands go to their standard input, lines come back. Waiting is for
such a line, never for time to pass.
"""
import os
import re
import select
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
# What lies in /sys belongs to the network namespace that mounted it, and UCX looks there.
HOLD = ['sh', '-c', 'mount -t sysfs none /sys && echo up && exec cat >/dev/null']
NEEDED = ('unshare', 'nsenter', 'ip')
# Everything of the caller's that the library, or UCX, would read.
FOREIGN = re.compile(r'^(M2N|UCX|OMPI|PMIX|PMI|SLURM|TORCHELASTIC)_|^(RANK|WORLD_SIZE|LOCAL_RANK|'
                     r'LOCAL_WORLD_SIZE|MASTER_ADDR|MASTER_PORT|JOB_COMPLETION_INDEX)$')
PATIENCE_S = 30
# Lines that end a wait for anything else.
BAD = r'failed |error |not added |# '


class Failure(Exception):
    """What a case saw that must not be."""


def clean_environment():
    return {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}


def run(*command, **kwargs):
    """Runs a command that must succeed; its standard output."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=PATIENCE_S, check=False, **kwargs)
    if done.returncode:
        raise Failure(f'{" ".join(command)}: {done.stderr.strip() or done.returncode}')
    return done.stdout


def why_no_hosts():
    """Why namespaces cannot be used here, None when they can."""
    try:
        for program in NEEDED:
            run('sh', '-c', f'command -v {program}')
        run('unshare', '--net', '--mount', '--pid', '--fork', '--mount-proc', 'ip', 'link', 'set',
            'lo', 'up')
    except (Failure, OSError) as error:
        return f'no namespaces here (they need root, util-linux and iproute2): {error}'
    return None


class Host:
    """Namespaces and the process that holds them."""

    def __init__(self, number, own_pids):
        self.number = number
        self.address = f'10.83.0.{number + 1}'
        self.own_pids = own_pids
        flags = ['--net', '--mount']
        if own_pids:
            flags += ['--pid', '--fork', '--mount-proc']
        self.holder = subprocess.Popen(['unshare', *flags, *HOLD], stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE)
        if self.holder.stdout.readline() != b'up\n':
            raise Failure('a host did not come up')
        self.run('ip', 'link', 'set', 'lo', 'up')

    def enter(self):
        """The words before a command that make it run on this host."""
        at = f'/proc/{self.holder.pid}/ns'
        # The root as well: where a test runs in a changed root, that of the namespace is another.
        words = ['nsenter', f'--net={at}/net', f'--mount={at}/mnt', f'--root={at}/../root',
                 f'--wd={at}/../cwd']
        return words + ([f'--pid={at}/pid_for_children'] if self.own_pids else [])

    def run(self, *command):
        """Runs a command in this host's network, seeing all processes."""
        return run('nsenter', f'--net=/proc/{self.holder.pid}/ns/net', *command)

    def link(self, state):
        """Plugs the cable in ("up") or pulls it out ("down")."""
        self.run('ip', 'link', 'set', 'eth0', state)

    def wait_up(self):
        """The kernel tells of a new carrier some time after it has one; UCX wants to see it."""
        end = time.monotonic() + PATIENCE_S
        while not re.search(r'<BROADCAST.*LOWER_UP', self.run('ip', 'link', 'show', 'eth0')):
            if time.monotonic() > end:
                raise Failure(f'the link of host {self.number} does not come up')

    def pids(self):
        """All processes of the host but its holder, by their numbers outside."""
        mine = os.stat(f'/proc/{self.holder.pid}/ns/pid_for_children').st_ino
        found = []
        for name in filter(str.isdigit, os.listdir('/proc')):
            try:
                if os.stat(f'/proc/{name}/ns/pid').st_ino != mine:
                    continue
                with open(f'/proc/{name}/status', encoding='ascii') as status:
                    is_first = re.search(r'^NSpid:.*\t1$', status.read(), re.M)
            except OSError:
                continue
            found += [] if is_first else [int(name)]
        return found

    def signal(self, number):
        for pid in self.pids():
            os.kill(pid, number)

    def close(self):
        """Takes the host away, and every process on it."""
        self.holder.stdin.close()
        self.holder.wait()
        self.holder.stdout.close()


class Net:
    """Some hosts, joined; use it as a context. wire(net): joins two in its own way."""

    def __init__(self, n_hosts, own_pids=True, wire=None):
        self.hosts = []
        self.switch = None
        self.ranks = []
        self.to_close = []
        try:
            for number in range(n_hosts):
                self.hosts.append(Host(number, own_pids))
            if wire:
                self.to_close.append(wire(self))
            else:
                self.join()
            for host in self.hosts:
                host.run('ip', 'addr', 'add', f'{host.address}/24', 'dev', 'eth0')
                host.link('up')
            for host in self.hosts:
                host.wait_up()
        except BaseException:
            self.close()
            raise

    def join(self):
        if len(self.hosts) == 2:
            one, other = self.hosts
            # Two ends with one index are slow to come up: the kernel takes them for no pair.
            one.run('ip', 'link', 'add', 'eth0', 'index', '77', 'type', 'veth', 'peer', 'name',
                    'eth0', 'netns', str(other.holder.pid))
            return
        self.switch = Host(len(self.hosts), own_pids=False)
        self.switch.run('ip', 'link', 'add', 'bridge', 'up', 'type', 'bridge')
        for host in self.hosts:
            port = f'port{host.number}'
            self.switch.run('ip', 'link', 'add', port, 'type', 'veth', 'peer', 'name', 'eth0',
                            'netns', str(host.holder.pid))
            self.switch.run('ip', 'link', 'set', port, 'master', 'bridge', 'up')

    def start(self, place, program, shape, options, own=None):
        """
        Starts a rank for each entry of `place`, the number of its host. shape: arguments of
        net_rank; options: environment of all, without M2N_ for the library's; own(rank): more.
        """
        for number, host in enumerate(place):
            mine = {'RANK': number, 'SIZE': len(place),
                    'STORE': f'tcp://{self.hosts[place[0]].address}:7000', 'TIMEOUT': '20s'}
            mine.update(options)
            mine.update(own(number) if own else {})
            self.ranks.append(Rank(number, self.hosts[host], [program, *shape], mine))
        return self.ranks

    def close(self):
        for rank in self.ranks:
            rank.close()
        for thing in self.to_close + self.hosts + ([self.switch] if self.switch else []):
            thing.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def variables(options):
    """Environment of options: UCX's as they are, others with the library's prefix."""
    return {name if name.startswith('UCX_') else f'M2N_{name}': str(value)
            for name, value in options.items()}


class Rank:
    """One net_rank process."""

    def __init__(self, number, host, command, options):
        self.number = number
        self.host = host
        self.lines = [] # all so far
        self.taken = 0 # of them, those that wait() is past
        self.rest = b''
        self.is_closed = False
        self.process = subprocess.Popen(
            host.enter() + command, env=clean_environment() | variables(options),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def tell(self, command):
        self.process.stdin.write(command.encode() + b'\n')
        self.process.stdin.flush()

    def read(self):
        """Takes what it printed; false at the end."""
        got = os.read(self.process.stdout.fileno(), 65536)
        *lines, self.rest = (self.rest + got).split(b'\n')
        self.lines += [line.decode(errors='replace') for line in lines]
        return bool(got)

    def wait(self, pattern, seconds=PATIENCE_S):
        """The match of the next line that begins like `pattern`; lines before it are passed by."""
        end = time.monotonic() + seconds
        while True:
            while self.taken < len(self.lines):
                line = self.lines[self.taken]
                self.taken += 1
                match = re.match(pattern, line)
                if match:
                    return match
                if re.match(BAD, line):
                    raise Failure(f'rank {self.number}: {line}')
            self.read_until(end, pattern)

    def see(self, pattern, seconds=PATIENCE_S):
        """The match of the first such line, now or to come; nothing is passed by."""
        end = time.monotonic() + seconds
        while True:
            for line in self.lines:
                match = re.match(pattern, line)
                if match:
                    return match
            self.read_until(end, pattern)

    def read_until(self, end, pattern):
        """Reads on; fails at the end of the output or of the time."""
        left = end - time.monotonic()
        if left > 0 and not select.select([self.process.stdout], [], [], left)[0]:
            left = 0
        if left <= 0:
            why = 'the time is over'
        elif not self.read():
            why = f'it ended with {self.process.wait(PATIENCE_S)}'
        else:
            return
        raise Failure(f'rank {self.number}: {why} before "{pattern}", but {self.lines[-25:]}')

    def ask(self, command, pattern, seconds=PATIENCE_S):
        self.tell(command)
        return self.wait(pattern, seconds)

    def close(self):
        if self.is_closed:
            return
        self.is_closed = True
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def ask_all(ranks, command, pattern, seconds=PATIENCE_S):
    """Tells all, then waits for all: what they do, they may do together."""
    for rank in ranks:
        rank.tell(command)
    return [rank.wait(pattern, seconds) for rank in ranks]


def close_all(ranks):
    """All end well; staged bytes of each."""
    staged = [int(match[1]) for match in ask_all(ranks, 'close', r'closed staged (\d+)')]
    for rank in ranks:
        if rank.process.wait(PATIENCE_S):
            raise Failure(f'rank {rank.number} ended with {rank.process.returncode}')
    return staged


class PoorLink:
    """
    Joins two hosts by a link that delays and loses: a veth pair with netem at both ends or, for
    kernels without netem, wire.py. To be given to Net.
    """

    def __init__(self, net, by_netem, delay_ms, jitter_ms, loss):
        self.hosts = net.hosts
        self.wire = None
        if not by_netem:
            self.start_wire([str(word) for word in (delay_ms, jitter_ms, loss)])
            return
        net.join()
        for host in net.hosts:
            host.run('tc', 'qdisc', 'add', 'dev', 'eth0', 'root', 'netem', 'delay',
                     f'{delay_ms}ms', f'{jitter_ms}ms', 'loss', f'{loss * 100}%', 'limit', '100000')

    def start_wire(self, words):
        self.wire = subprocess.Popen(
            [sys.executable, os.path.join(HERE, 'wire.py'),
             *(str(host.holder.pid) for host in self.hosts), *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self.wire.stdout.readline() != 'up\n':
            raise Failure('wire.py did not come up')

    def n_lost(self):
        """Ends a wire; how many frames it, or netem, has lost."""
        if self.wire:
            self.wire.stdin.close()
            return int(self.wire.stdout.readline().split()[-1])
        told = [host.run('tc', '-s', 'qdisc', 'show', 'dev', 'eth0') for host in self.hosts]
        return sum(int(re.search(r'dropped (\d+)', text)[1]) for text in told)

    def close(self):
        if self.wire:
            self.wire.kill()
            self.wire.wait()
            self.wire.stdout.close()
