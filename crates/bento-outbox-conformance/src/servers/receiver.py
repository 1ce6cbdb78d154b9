"""A receiver of webhooks that shares no code with what it tests: HTTP/1.1 read from the socket.

usage: receiver.py PORT FILE BODY_BYTES_MAX

Each POST is written to FILE as one line of JSON, with every header as it came and the body in base64,
before it is answered. What is written survives kill -9 of this process.
"""

import asyncio
import base64
import json
import os
import sys

PORT, FILE, BODY_BYTES_MAX = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
FD = os.open(FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


def answer(status):
    return f"HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n".encode()


async def receive(reader, writer):
    while True:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return
        request, *lines = head[:-4].split(b"\r\n")
        method, target, _ = request.decode("latin-1").split(" ")
        headers = []
        for line in lines:
            name, _, value = line.partition(b":")
            headers.append([name.decode("ascii"), value.strip(b" ").decode("utf-8", "surrogateescape")])
        length = sum(int(value) for name, value in headers if name.lower() == "content-length")
        if length > BODY_BYTES_MAX:
            # As servers do: refuse without reading, then read on for a while so that it is heard.
            writer.write(answer("413 Content Too Large"))
            await writer.drain()
            while length > 0 and (part := await reader.read(min(length, 1 << 16))):
                length -= len(part)
            continue
        body = await reader.readexactly(length)
        if method != "POST":
            writer.write(answer("405 Method Not Allowed"))
            continue
        line = {"target": target, "headers": headers, "body": base64.b64encode(body).decode()}
        os.write(FD, json.dumps(line).encode() + b"\n")
        writer.write(answer("204 No Content"))


async def serve(reader, writer):
    try:
        await receive(reader, writer)
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", PORT, limit=1 << 20, backlog=1024)
    await server.serve_forever()


asyncio.run(main())
