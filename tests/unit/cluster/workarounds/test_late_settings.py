"""Settings that Ray reads once, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

SCRIPT = """
import json, os
for name in ("RAY_AUTH_MODE", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
    os.environ.pop(name, None)
import ray
from ray import _raylet
from ray._private import ray_constants
from recon_ray.cluster.workarounds import late_settings

def state():
    return _raylet.get_authentication_mode(), ray_constants.ENABLE_RAY_CLUSTER

found = [state()]
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
found.append(state())
late_settings.reread_auth_mode()
late_settings.keep_to_loopback()
found.append(state())
from ray._private.services import get_node_ip_address
print(json.dumps([found, get_node_ip_address(), int(_raylet.AuthenticationMode.TOKEN)]))
"""


def test_variables_that_are_set_late_need_the_workarounds_and_then_count() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=True
    )
    (at_first, set_late, afterwards), address, token = json.loads(done.stdout.splitlines()[-1])
    assert at_first[1]
    assert set_late == at_first, "Ray reads them by itself: the workarounds can go"
    assert afterwards == [token, False]
    assert address == "127.0.0.1"
