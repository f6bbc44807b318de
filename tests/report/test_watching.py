"""The server of `poise watch`: what it serves, and everything that it refuses."""

import gzip
import http.client
import json
import subprocess
import sys
import threading
import urllib.parse

import pytest
from report_runs import finished_run, pair_batch
from typer.testing import CliRunner

from poise.cli import app
from poise.cli.watch import watched
from poise.report.watching import WatchServer
from poise.storage.run_directory import RunDirectory


@pytest.fixture
def directory(tmp_path):
    directory = finished_run(tmp_path / "run")
    (tmp_path / "secret.txt").write_text("secret")
    return directory


@pytest.fixture
def server(directory):
    server = WatchServer(directory)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def ask(server, path, method="GET", **headers):
    """Status, headers and body of one request; `path` stands behind the token unless it begins with a slash."""
    url = urllib.parse.urlsplit(server.address)
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=30)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.putrequest(method, path if path.startswith("/") else url.path + path, skip_host="Host" in given)
    for name, value in given.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, dict(answer.headers), answer.read()
    connection.close()
    return found


def test_page_and_data_are_served_behind_the_token(server):
    status, headers, body = ask(server, "")
    assert status == 200
    assert "connect-src 'self'" in headers["Content-Security-Policy"]
    assert b'id="head-data"></script>' in body
    status, headers, body = ask(server, "head", Origin=server.address.rsplit("/", 2)[0])
    assert (status, headers["Content-Encoding"], headers["Referrer-Policy"]) == (200, "gzip", "no-referrer")
    assert json.loads(gzip.decompress(body))["name"] == "run"
    assert json.loads(gzip.decompress(ask(server, "rollouts")[2]))["rows"] == 8


def test_what_is_new_is_seen_and_what_is_not_costs_nothing(server, directory):
    mark = ask(server, "rollouts")[1]["ETag"]
    assert ask(server, "rollouts", If_None_Match=mark)[0] == 304
    pair_batch(directory, 3, [1.0, 0.0])
    status, headers, body = ask(server, "rollouts", If_None_Match=mark)
    assert (status, json.loads(gzip.decompress(body))["rows"]) == (200, 10)
    assert headers["ETag"] != mark


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/", {}, 404),
        ("/head", {}, 404),
        ("/wrong-token/head", {}, 404),
        ("/%00/head", {}, 404),
        ("/tok\u00e9n/head".encode().decode("latin-1"), {}, 404),
        ("../secret.txt", {}, 404),
        ("../../secret.txt", {}, 404),
        ("..%2f..%2fsecret.txt", {}, 404),
        ("metrics.jsonl", {}, 404),
        ("head/../config.yaml", {}, 404),
        ("head?x=1", {}, 404),
        ("head", {"Host": "evil.example"}, 403),
        ("head", {"Host": "127.0.0.1"}, 403),
        ("head", {"Origin": "http://evil.example"}, 403),
        ("head", {"Origin": "null"}, 403),
        ("head", {"Sec_Fetch_Site": "cross-site"}, 403),
        ("head", {"Sec_Fetch_Site": "same-site"}, 403),
    ],
)
def test_strangers_are_refused(server, path, headers, status):
    if "\u00c3" in path:
        path = urllib.parse.quote(path)
    found, _, body = ask(server, path, **headers)
    assert found == status
    assert b"secret" not in body
    assert b"{" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "HEAD"])
def test_nothing_can_be_done_but_to_read(server, method):
    assert ask(server, "head", method=method)[0] == 501


def test_server_listens_on_this_machine_alone_and_never_with_the_same_token(server, directory):
    assert server.server_address[0] == "127.0.0.1"
    other = WatchServer(directory)
    other.server_close()
    assert other.token != server.token
    assert len(other.token) >= 32


def test_training_with_watch_has_a_server_as_long_as_it_lasts(directory, monkeypatch):
    started = []

    class Process:
        def __init__(self, command, **options):
            started.append(command)

        def terminate(self):
            started.append("ended")

        wait = terminate

    monkeypatch.setattr(subprocess, "Popen", Process)
    with watched(directory.path, wanted=False):
        assert started == []
    with watched(directory.path, wanted=True):
        assert started == [[sys.executable, "-m", "poise", "watch", str(directory.path)]]
    assert started[1:] == ["ended", "ended"]


def test_command_says_the_address_and_refuses_what_is_no_run(directory, tmp_path):
    refused = CliRunner().invoke(app, ["watch", str(tmp_path / "nothing")])
    assert refused.exit_code == 2
    assert "poise watch: " in refused.output
    assert "holds no run: a run has a file metrics.jsonl" in refused.output
    command = [sys.executable, "-m", "poise", "watch", str(directory.path), "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    address = process.stdout.readline().split()[0]
    process.terminate()
    process.communicate()
    assert address.startswith("http://127.0.0.1:")
    assert RunDirectory(directory.path).read_summary()["steps"] == 2
