"""The page is served to this machine alone, grows with the log, and nothing else is served."""

import contextlib
import runpy
import shutil
import threading
import unittest
import urllib.error
import urllib.request

from tests.helpers import ROOT, InFolder, refused
from tests.report.test_page import HAS_VEGA, cartpole_run


@contextlib.contextmanager
def served(*runs):
    make_server = runpy.run_path(str(ROOT / "scripts" / "watch.py"))["make_server"]
    server = make_server([str(run) for run in runs], "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield "http://{}:{}".format(*server.server_address)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def get(address):
    with urllib.request.urlopen(address, timeout=60) as answer:
        return answer.read().decode()


@unittest.skipUnless(HAS_VEGA, "needs: pip install --no-deps -r requirements-report.txt")
class TestWatch(InFolder):
    def test_the_page_follows_the_run(self):
        run_dir = self.tmp / "run"
        shutil.copytree(cartpole_run(), run_dir)
        log = run_dir / "log.csv"
        lines = log.read_text().splitlines()
        half = lines[: len(lines) // 2]
        log.write_text("\n".join(half) + "\n")
        with served(run_dir) as address:
            head = get(address + "/").split("<script")[0]
            self.assertIn("unfinished", head)
            before = get(address + "/stamp")
            log.write_text("\n".join(lines) + "\n")
            self.assertNotEqual(get(address + "/stamp"), before)
            self.assertIn("finished, 1,200 steps", get(address + "/").split("<script")[0])

    def test_what_cannot_be_read_is_told_wherever_it_lies(self):
        run_dir = self.tmp / "mäuse 鼠"
        shutil.copytree(cartpole_run(), run_dir)
        (run_dir / "evaluation.csv").write_bytes(b"\xff\xfeabc")
        with served(run_dir) as address:
            with self.assertRaises(urllib.error.HTTPError) as caught:
                get(address + "/")
        self.assertEqual(caught.exception.code, 503)
        self.assertIn("鼠/evaluation.csv is no CSV", caught.exception.read().decode())

    def test_nothing_else_is_served(self):
        with served(cartpole_run()) as address:
            for path in (
                "/config.json",
                "/log.csv",
                "/../log.csv",
                "/%2e%2e/log.csv",
                "//etc/hosts",
            ):
                with self.assertRaises(urllib.error.HTTPError) as caught:
                    get(address + path)
                self.assertEqual(caught.exception.code, 404)

    def test_this_machines_names_are_taken_as_browsers_send_them(self):
        with served(cartpole_run()) as address:
            for host in ("localhost", "LOCALHOST:8000", "127.0.0.1"):
                asked = urllib.request.Request(address + "/stamp", headers={"Host": host})
                self.assertTrue(get(asked))
            self.assertIn(f'stamp !== "{get(address + "/stamp")}"', get(address + "/"))

    def test_another_sites_name_is_refused(self):
        with served(cartpole_run()) as address:
            asked = urllib.request.Request(address + "/stamp", headers={"Host": "evil.example:80"})
            with self.assertRaises(urllib.error.HTTPError) as caught:
                get(asked)
            self.assertEqual(caught.exception.code, 403)

    def test_what_can_not_be_is_said(self):
        refused(self, "There is no run", "watch", "nowhere")
        with served(cartpole_run()) as address:
            port = address.rpartition(":")[2]
            refused(self, f"{port} can't be served on", "watch", cartpole_run(), f"--port={port}")


if __name__ == "__main__":
    unittest.main()
