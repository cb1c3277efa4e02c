"""A stand-in for a MongoDB server: mongomock's collections behind MongoDB's wire protocol.

Real clients connect to it: pymongo, and the Node driver of Omniboard (`python tests/
mongo_stand_in.py 27017` serves until it is ended). It has the commands that these two need, and
mongomock decides what a query means.
"""

import re
import socketserver
import struct
import sys
import threading
from contextlib import contextmanager

import bson
import mongomock

_OP_REPLY, _OP_QUERY, _OP_MSG = 1, 2004, 2013
_HELLO = {
    "ismaster": True,
    "isWritablePrimary": True,
    "maxBsonObjectSize": 16 << 20,
    "maxMessageSizeBytes": 48000000,
    "maxWriteBatchSize": 100000,
    "minWireVersion": 0,
    "maxWireVersion": 9,  # MongoDB 4.4: later ones count by a stage that mongomock lacks
    "readOnly": False,
}


class Refused(Exception):
    """A command that is not there."""


def answer(client, command):
    """The reply to one command, as a document."""
    name, target = next(iter(command.items()))
    if name.lower() in ("ismaster", "hello"):
        return dict(_HELLO)
    if name in ("ping", "endSessions", "killCursors"):
        return {}
    if name.lower() == "buildinfo":
        return {"version": "7.0.0", "versionArray": [7, 0, 0, 0]}
    database = client[command["$db"]]
    if name == "listCollections":
        names = [{"name": one, "type": "collection"} for one in database.list_collection_names()]
        return _cursor(database, "$cmd.listCollections", names)
    if not isinstance(target, str) or name not in _COMMANDS:
        raise Refused(name)
    return _COMMANDS[name](database[target], command)


def _cursor(database, collection, documents):
    return {"cursor": {"id": 0, "ns": f"{database.name}.{collection}", "firstBatch": documents}}


def _found(collection, documents):
    return _cursor(collection.database, collection.name, list(documents))


def _find(collection, command):
    found = collection.find(command.get("filter") or {}, command.get("projection") or None)
    if command.get("sort"):
        found = found.sort(list(command["sort"].items()))
    found = found.skip(int(command.get("skip", 0)))
    return _found(collection, found.limit(abs(int(command.get("limit", 0)))))


def _insert(collection, command):
    for document in command["documents"]:
        try:
            collection.insert_one(document)
        except mongomock.DuplicateKeyError as exc:
            return {"n": 0, "writeErrors": [{"index": 0, "code": 11000, "errmsg": str(exc)}]}
    return {"n": len(command["documents"])}


def _update(collection, command):
    matched, changed, upserted = 0, 0, []
    for index, one in enumerate(command["updates"]):
        update = collection.update_many if one.get("multi") else collection.update_one
        result = update(one["q"], one["u"], upsert=one.get("upsert", False))
        matched, changed = matched + result.matched_count, changed + result.modified_count
        if result.upserted_id is not None:
            upserted.append({"index": index, "_id": result.upserted_id})
    reply = {"n": matched + len(upserted), "nModified": changed}
    return {**reply, "upserted": upserted} if upserted else reply


def _delete(collection, command):
    gone = 0
    for one in command["deletes"]:
        delete = collection.delete_one if one.get("limit") else collection.delete_many
        gone += delete(one["q"]).deleted_count
    return {"n": gone}


_COMMANDS = {
    "find": _find,
    "insert": _insert,
    "update": _update,
    "delete": _delete,
    "aggregate": lambda coll, cmd: _found(coll, coll.aggregate(cmd["pipeline"])),
    "count": lambda coll, cmd: {"n": coll.count_documents(cmd.get("query") or {})},
    "distinct": lambda coll, cmd: {"values": coll.distinct(cmd["key"], cmd.get("query") or {})},
    "createIndexes": lambda coll, cmd: {},
}


class _Connection(socketserver.BaseRequestHandler):
    def handle(self):
        while True:
            header = self._read(16)
            if header is None:
                return
            length, request, _, code = struct.unpack("<iiii", header)
            body = self._read(length - 16)
            if code == _OP_MSG:
                self._send(request, _OP_MSG, b"\0" * 5, self._reply(self._message(body)))
            elif code == _OP_QUERY:  # old drivers begin with it
                start = body.index(b"\0", 4)
                command = bson.decode(body[start + 9 :])
                command.setdefault("$db", re.sub(r"\..*", "", body[4:start].decode()))
                head = struct.pack("<iqii", 8, 0, 0, 1)
                self._send(request, _OP_REPLY, head, self._reply(command))
            else:
                return

    def _read(self, size):
        data = b""
        while len(data) < size:
            part = self.request.recv(size - len(data))
            if not part:
                return None
            data += part
        return data

    def _message(self, body):
        """The command of an OP_MSG, with the documents that stand behind it."""
        command, at = {}, 4
        while at < len(body):
            kind, at = body[at], at + 1
            (size,) = struct.unpack_from("<i", body, at)
            part, at = body[at : at + size], at + size
            if kind == 0:
                command = {**bson.decode(part), **command}
            else:
                name, _, documents = part[4:].partition(b"\0")
                command[name.decode()] = bson.decode_all(documents)
        first = next(key for key in command if key not in ("documents", "updates", "deletes"))
        return {first: command.pop(first), **command}

    def _reply(self, command):
        server = self.server
        try:
            with server.guard:
                reply = {"ok": 1.0, **answer(server.client, command)}
        except Exception as exc:
            reply = {"ok": 0.0, "code": 59, "errmsg": f"{type(exc).__name__}: {exc}"}
        server.commands.append((next(iter(command)), reply["ok"] == 1.0))
        return bson.encode(reply)

    def _send(self, request, code, head, document):
        body = head + document
        self.request.sendall(struct.pack("<iiii", 16 + len(body), 1, request, code) + body)


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True

    def __init__(self, port):
        super().__init__(("127.0.0.1", port), _Connection)
        self.client, self.guard, self.commands = mongomock.MongoClient(), threading.Lock(), []


@contextmanager
def serving(port=0):
    """The server, with `server_address`, `client` (mongomock's) and `commands` (name, whether it
    was carried out); it listens on this machine alone.
    """
    with _Server(port) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    with _Server(int(sys.argv[1])) as stand_in:
        stand_in.serve_forever()
