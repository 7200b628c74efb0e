#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Stands in for a benchmark of others (ib_write_bw, ucx_perftest): a server that takes one
connection on the port after -p, or a client that makes one and prints a recorded output.

FAKE_OUTPUT is the file to print, of which 65536 becomes the size asked for; FAKE_LOG gets a line
of each call's arguments, behind the pid; FAKE_MODE: fail (print and exit 1), hang (the client never
ends), late (the server takes a while).
"""
import os
import signal
import socket
import sys
import time


def main():
    arguments = sys.argv[1:]
    mode = os.environ.get('FAKE_MODE', '')
    with open(os.environ['FAKE_LOG'], 'a', encoding='utf-8') as log:
        log.write(f'{os.getpid()} {os.path.basename(sys.argv[0])} {" ".join(arguments)}\n')
    at = arguments.index('-p')
    port = int(arguments[at + 1])
    host = arguments[at + 2] if len(arguments) > at + 2 else None
    with open(os.environ['FAKE_OUTPUT'], encoding='utf-8') as file:
        text = file.read()
    if '-s' in arguments:
        text = text.replace('65536 ', arguments[arguments.index('-s') + 1] + ' ')
    if mode == 'fail':
        sys.stdout.write(text)
        return 1
    if host is None:
        if mode == 'late':
            time.sleep(0.3)
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(('', port))
            server.listen(1)
            server.accept()[0].recv(1)
        return 0
    with socket.create_connection((host, port)) as client:
        if mode == 'hang':
            signal.pause()
        client.sendall(b'x')
    sys.stdout.write(text)
    return 0


if __name__ == '__main__':
    sys.exit(main())
