"""The least that a receiver of alerts can do, to compare SeS with.

It parses each payload, keeps a set of the episodes, writes what is new to a file, and answers once it is
flushed, one flush for all that waits. No query, no history, no bound. Usage: bare_receiver.py PORT FILE
"""
import json, os, socketserver, sys, threading
from http.server import BaseHTTPRequestHandler

seen, lock, lines, waiting = set(), threading.Lock(), [], threading.Condition()
written = flushed = 0

def flush(file):
    global lines, flushed
    while True:
        with waiting:
            waiting.wait_for(lambda: lines)
            group, lines, through = lines, [], written
        os.write(file, "".join(group).encode())
        os.fsync(file)
        with waiting:
            flushed = through
            waiting.notify_all()

class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        global written
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        keys = [(a["startsAt"], a["endsAt"], *sorted(a["labels"].items())) for a in payload["alerts"]]
        with lock:
            new = [k for k in keys if k not in seen]
            seen.update(new)
        if new:
            with waiting:
                lines.append(json.dumps(new) + "\n")
                written = mine = written + 1
                waiting.notify_all()
                waiting.wait_for(lambda: flushed >= mine)
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass

class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    request_queue_size = 64

threading.Thread(target=flush, args=[os.open(sys.argv[2], os.O_CREAT | os.O_WRONLY | os.O_APPEND)], daemon=True).start()
Server(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
