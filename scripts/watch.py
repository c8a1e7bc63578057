"""Look at runs while they train: python scripts/watch.py RUN..., then open the address it prints.

The page is that of report.py, without a game, made anew when a log has grown.
"""

import dataclasses
import http.server
import ipaddress
import re
import threading

import tyro

from tfdqt.errors import UsageError
from tfdqt.report.gather import gather
from tfdqt.report.page import make_page, vega
from tfdqt.runs.cli import run_main
from tfdqt.runs.folder import find_run

# Asks whether the runs have gone on, and then loads the page again where it stands.
POLL = """
<script>
(() => {
  setInterval(async () => {
    try {
      const stamp = await (await fetch("/stamp")).text();
      if (stamp !== "STAMP") location.reload();
    } catch { /* the server was stopped */ }
  }, 5000);
})();
</script>
"""


OWN_NAMES = ("127.0.0.1", "localhost")
PORT = re.compile(r":\d*$")  # which a browser leaves out if it is 80


@dataclasses.dataclass(frozen=True)
class Args:
    """Serve a page of runs on this machine, refreshed while they train."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Folders of runs."""
    port: int = 8_000
    """Port to serve on; 0: any that is free."""
    host: str = "127.0.0.1"
    """Address to serve on. Any other than this machine's own lets others read the runs."""


def is_loopback(host):
    """Whether an address is reached from this machine alone."""
    return ipaddress.ip_address(host).is_loopback


def stamp_of(folders):
    """What changes when a run goes on."""
    files = [folder / name for folder in folders for name in ("log.csv", "evaluation.csv")]
    return " ".join(str(file.stat().st_mtime_ns if file.exists() else 0) for file in files)


def make_server(runs, host, port):
    """An HTTPServer of the page of runs, and of nothing else. Raises UsageError if it can't be."""
    folders = [find_run(run) for run in runs]
    title = ", ".join(folder.name for folder in folders)
    made = dict(stamp=None, page="")
    lock = threading.Lock()

    def page():
        with lock:
            stamp = stamp_of(folders)
            if stamp != made["stamp"]:
                text = make_page(gather([str(folder) for folder in folders]), title)
                begin, end = text.rsplit("</body>", 1)
                poll = POLL.replace("STAMP", stamp)
                made.update(stamp=stamp, page=f"{begin}{poll}</body>{end}")
            return made["page"]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.partition("?")[0]
            name = PORT.sub("", self.headers.get("Host", "")).lower()
            served = self.server.server_address[0]
            if is_loopback(served) and name not in (*OWN_NAMES, served):
                self.send_error(403)  # another site's name that was made to lead here
                return
            if path not in ("/", "/stamp"):
                self.send_error(404)
                return
            try:
                text = page() if path == "/" else stamp_of(folders)
            except UsageError as error:
                self.send_error(503, explain=str(error))
                return
            body = text.encode()
            self.send_response(200)
            kind = "html" if path == "/" else "plain"
            self.send_header("Content-Type", f"text/{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            """Requests are not printed."""

    try:
        return http.server.ThreadingHTTPServer((host, port), Handler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"{host}:{port} can't be served on ({reason}); choose another --port, or --port=0."
        ) from None


def main(argv=None):
    args = tyro.cli(Args, args=argv, description=__doc__)
    if not args.runs:
        raise UsageError("Name one or more folders of runs.")
    vega()
    server = make_server(args.runs, args.host, args.port)
    host, port = server.server_address[:2]
    print(f"http://{host}:{port}/ (stop with Ctrl-C)", flush=True)
    if not is_loopback(host):
        print("Note: whoever reaches this address can read the runs.", flush=True)
    with server:
        server.serve_forever()


if __name__ == "__main__":
    run_main(main)
