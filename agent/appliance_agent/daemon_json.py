"""Changes to the Docker Engine's configuration as commands that can be typed; what is there already stays. Pure."""

from __future__ import annotations

RESTART = "sudo systemctl restart docker"


def command(change: str) -> str:
    """`change` is a Python statement about the dictionary `d`."""
    program = (
        'import json,pathlib; f=pathlib.Path("/etc/docker/daemon.json"); '
        f"d=json.loads(f.read_text()) if f.exists() else {{}}; {change}; f.write_text(json.dumps(d,indent=2))"
    )
    return f"sudo python3 -c '{program}' && {RESTART}"


def cdi() -> str:
    return command('d.setdefault("features",{})["cdi"]=True')


def cgroupfs() -> str:
    return command('d.setdefault("exec-opts",[]).append("native.cgroupdriver=cgroupfs")')
