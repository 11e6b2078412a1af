"""demo: the main job, shown."""

from __future__ import annotations

import click

from broker.cli.exits import Exit
from broker.cli.face import Command, Face, pass_face
from broker.demo import show


@click.command("demo", cls=Command, examples="broker demo\nbroker demo --generated", answer="{equal}")
@click.option("--generated", is_flag=True, help="A generated catalogue, also where the real one is at hand.")
@click.option("--keep", is_flag=True, help="Leave the temporary folder for a look.")
@pass_face
def demo(face: Face, generated: bool, keep: bool) -> int:
    """Show the main job in under a minute, in a folder of its own; exit 1 when replica and source differ."""
    equal = show(face.say if face.json else click.echo, generated=generated, keep=keep)
    if face.json:
        face.emit({"equal": equal}, "")
    return Exit.OK if equal else Exit.FAILED
