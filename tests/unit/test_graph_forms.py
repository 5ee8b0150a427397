"""The forms of a picture: what each says of one scene, that other programs understand them, and what may be in names."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont

from atoll.errors import Invalid, NotFound
from atoll.graph import scene as scenes
from atoll.graph.dot import dot
from atoll.graph.drawing import PALETTES, Drawing, draw
from atoll.graph.layout import lay_out
from atoll.graph.mermaid import mermaid
from atoll.graph.png import SCALE, png
from atoll.graph.scene import Endpoint, Namespace, Network, Port, Scene, Subnet, Uplink
from atoll.graph.svg import svg
from atoll.graph.terminal import lines
from atoll.graph.text import width

if TYPE_CHECKING:
    from atoll.graph.drawing import Theme

NETWORKS: Final[list[dict[str, Any]]] = [
    {"name": "host", "driver": "host", "subnets": [], "endpoints": []},
    {"name": "none", "driver": "none", "subnets": [], "endpoints": []},
    {
        "name": "web",
        "driver": "bridge",
        "internal": False,
        "icc": True,
        "guard": True,
        "nat": "masquerade",
        "subnets": [{"subnet": "10.1.0.0/24", "gateway": "10.1.0.1"}, {"subnet": "fd00:1::/64", "gateway": "fd00:1::1"}],
    },
    {
        "name": "db",
        "driver": "bridge",
        "internal": True,
        "icc": False,
        "guard": True,
        "nat": "masquerade",
        "subnets": [{"subnet": "10.2.0.0/24", "gateway": "10.2.0.1"}],
    },
    {"name": "lan", "driver": "macvlan", "parent": "eth1", "mode": "bridge", "subnets": [{"subnet": "192.0.2.0/24"}]},
    {"name": "far", "driver": "bridge", "nat": "snat", "snat": ["192.0.2.7"], "subnets": [{"subnet": "10.3.0.0/24"}]},
]
NAMESPACES: Final[list[dict[str, Any]]] = [
    {
        "name": "r1",
        "source": "pid:4711",
        "endpoints": [
            {
                "network": "web",
                "interface": "eth0",
                "addresses": ["10.1.0.2/24", "fd00:1::2/64"],
                "aliases": ["shop"],
                "ports": ["8080:80/tcp"],
            },
            {"network": "db", "interface": "eth1", "addresses": ["10.2.0.2/24"], "aliases": [], "ports": ["[::1]:53:5353/udp"]},
        ],
    },
    {"name": "r2", "source": "", "endpoints": [{"network": "lan", "interface": "eth0", "addresses": ["192.0.2.9/24"]}]},
    {"name": "r3", "source": "", "command": ["sleep", "60"], "endpoints": []},
]
HOST: Final = {"hostname": "here", "uplinks": [{"interface": "eth0", "addresses": ["192.0.2.1/24"]}]}

#: What is drawn of all this in a terminal of 80 columns.
DRAWN: Final = """\
outside  192.0.2.2
  │ eth0 192.0.2.1/24
  │ eth1
══╧══ host here ════════════════════════════════════════════════════════════════

web  bridge masquerade  10.1.0.0/24 by 10.1.0.1  fd00:1::/64 by fd00:1::1
┗━━━┓
  ┌─┸─────────────────────┐
  │ r1                    │
  │ pid:4711              │
  │ eth0 10.1.0.2         │
  │      fd00:1::2        │
  │ aka shop              │
  │ ◂ 8080 → 80           │
  │ eth1 db 10.2.0.2      │
  │ ◂ [::1]:53 → 5353/udp │
  └───────────────────────┘

db  bridge internal no-icc  10.2.0.0/24 by 10.2.0.1
  also r1  eth1 10.2.0.2

lan  macvlan mode bridge on eth1  192.0.2.0/24
┗━━━┓
  ┌─┸──────────────┐
  │ r2             │
  │ eth0 192.0.2.9 │
  └────────────────┘

far  bridge snat 192.0.2.7  10.3.0.0/24

no network
  ┌────────────────┐
  │ r3             │
  │ sleep 60       │
  └────────────────┘
"""

SCENE: Final = scenes.read(NETWORKS, NAMESPACES, HOST, outside="192.0.2.2")


def drawing() -> Drawing:
    return draw(lay_out(SCENE))


# --- the scene -----------------------------------------------------------------------------------------------------------------------


def test_a_scene_says_what_the_api_says() -> None:
    assert (
        Scene(
            host="here",
            uplinks=(Uplink("eth0", ("192.0.2.1/24",)), Uplink("eth1")),
            networks=(
                Network("web", "bridge", 0, (Subnet("10.1.0.0/24", "10.1.0.1"), Subnet("fd00:1::/64", "fd00:1::1")), "masquerade"),
                Network("db", "bridge", 1, (Subnet("10.2.0.0/24", "10.2.0.1"),), "", "", ("internal", "no-icc")),
                Network("lan", "macvlan", 2, (Subnet("192.0.2.0/24"),), "on eth1", "eth1", ("mode bridge",)),
                Network("far", "bridge", 3, (Subnet("10.3.0.0/24"),), "snat 192.0.2.7"),
            ),
            namespaces=(
                Namespace(
                    "r1",
                    "pid:4711",
                    (
                        Endpoint("web", "eth0", ("10.1.0.2", "fd00:1::2"), ("shop",), (Port("8080", "80", "tcp"),)),
                        Endpoint("db", "eth1", ("10.2.0.2",), (), (Port("[::1]:53", "5353", "udp"),)),
                    ),
                ),
                Namespace("r2", "", (Endpoint("lan", "eth0", ("192.0.2.9",)),)),
                Namespace("r3", "sleep 60"),
            ),
            outside="192.0.2.2",
        )
        == SCENE
    )
    assert [str(port) for port, _ in SCENE.published()] == ["[::1]:53:5353/udp", "8080:80/tcp"]


def test_a_part_of_it_has_the_networks_named_and_who_is_on_them() -> None:
    part = scenes.read(NETWORKS, NAMESPACES, HOST, only=["db"])
    assert [network.name for network in part.networks] == ["db"]
    assert [(item.name, [end.network for end in item.endpoints]) for item in part.namespaces] == [("r1", ["db"])]
    with pytest.raises(NotFound, match="no network 'nope'"):
        scenes.read(NETWORKS, NAMESPACES, HOST, only=["nope"])


def test_json_is_the_scene() -> None:
    shown = json.loads(json.dumps(SCENE.json()))
    assert shown["namespaces"][0]["endpoints"][0] == {
        "network": "web",
        "interface": "eth0",
        "addresses": ["10.1.0.2", "fd00:1::2"],
        "aliases": ["shop"],
        "ports": [{"outer": "8080", "inner": "80", "protocol": "tcp"}],
    }
    assert set(shown) == {"host", "uplinks", "networks", "namespaces", "outside"}


# --- SVG and PNG ---------------------------------------------------------------------------------------------------------------------


def test_svg_is_dark_where_its_reader_likes_it_dark_unless_a_theme_is_named() -> None:
    dark, light = PALETTES["dark"]["card"], PALETTES["light"]["card"]
    assert "@media(prefers-color-scheme:dark)" in svg(drawing())
    for theme, there, not_there in (("dark", dark, light), ("light", light, dark)):
        shown = svg(drawing(), theme)  # type: ignore[arg-type]
        assert "@media" not in shown
        assert f".f-card{{fill:{there}}}" in shown
        assert f".f-card{{fill:{not_there}}}" not in shown


def test_another_program_draws_the_svg_as_the_png_is() -> None:
    """Where both have flat colour: at the corners, on grounds and in headers."""
    if shutil.which("rsvg-convert") is None:
        pytest.skip("rsvg-convert is not installed")
    done = subprocess.run(["rsvg-convert", "-z", str(SCALE)], input=svg(drawing()).encode(), capture_output=True, check=True)
    theirs = Image.open(io.BytesIO(done.stdout)).convert("RGB")
    ours = Image.open(io.BytesIO(png(drawing())))
    assert abs(theirs.width - ours.width) <= SCALE
    assert abs(theirs.height - ours.height) <= SCALE
    compared = [(x, y) for x in range(0, min(ours.width, theirs.width), 7) for y in range(0, min(ours.height, theirs.height), 7)]
    differ = [place for place in compared if ours.getpixel(place) != theirs.getpixel(place)]
    # The letters of two fonts, and the smoothed edges.
    assert len(differ) < len(compared) / 8


def test_png_has_the_colours_of_its_theme_and_is_the_same_each_time() -> None:
    themes: tuple[Theme, ...] = ("light", "dark")
    for theme in themes:
        data = png(drawing(), theme)
        assert data == png(drawing(), theme)
        image = Image.open(io.BytesIO(data))
        assert image.size == (round(drawing().width * SCALE), round(drawing().height * SCALE))
        counted = {colour for _, colour in image.getcolors(1 << 20) or []}
        for name in ("page", "card", "n0", "n1", "port"):
            wanted = PALETTES[theme][name]
            assert tuple(int(wanted[at : at + 2], 16) for at in (1, 3, 5)) in counted, name


def test_a_picture_too_large_for_png_is_refused() -> None:
    with pytest.raises(Invalid, match="the picture would have 200000 times 2000 pixels"):
        png(Drawing(100_000.0, 1_000.0, "", ()))


def test_text_is_never_wider_than_the_layout_thinks() -> None:
    font = ImageFont.load_default(1000)
    for character in [*map(chr, range(32, 127)), "…", "·"]:
        for bold in (False, True):
            assert font.getlength(character) <= width(character, 1000, bold=bold) + 6, character


def test_png_without_pillow_says_how_to_get_it() -> None:
    program = "import sys; sys.modules['PIL'] = None\nfrom atoll.graph import png"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.endswith("Unsupported: PNG needs Pillow, which is not installed; pip install pillow\n")


# --- dot and Mermaid -----------------------------------------------------------------------------------------------------------------


def test_dot_has_all_of_it() -> None:
    shown = dot(SCENE)
    for name in ("web", "db", "lan", "r1", "r2", "r3"):
        assert f'[label="{name}' in shown
    assert '  n0 -- s0 [label="eth0\\n10.1.0.2\\nfd00:1::2"' in shown
    assert '  n1 -- s0 [label="eth1\\n10.2.0.2"' in shown
    assert '  u0 -- n0 [label="masquerade", style=dashed]' in shown
    assert "  u1 -- n2 [" in shown
    assert not [line for line in shown.splitlines() if line.startswith("  u") and line.endswith("n1")]


@settings(max_examples=15, deadline=None)
@given(st.text(max_size=60))
@example('"]; x [label="\\N &amp; &lt;b&gt; \\n')
def test_graphviz_takes_any_name_and_shows_it(name: str) -> None:
    if shutil.which("dot") is None:
        pytest.skip("graphviz is not installed")
    network = Network("n", "bridge", 0)
    text = dot(Scene("h", (), (network,), (Namespace(f"_{name}_", name, (Endpoint("n", "eth0"),)),)))
    done = subprocess.run(["dot", "-Tsvg"], input=text.encode(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    root = ElementTree.fromstring(done.stdout)
    words = [" ".join((element.text or "").split()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert " ".join("".join(one if one.isprintable() else "\ufffd" for one in f"_{name}_").split()) in words


def test_mermaid_has_all_of_it() -> None:
    assert mermaid(SCENE).splitlines() == [
        "flowchart TB",
        '  outside(["outside<br>192.0.2.2"])',
        '  subgraph host["host here"]',
        '    u0["eth0<br>192.0.2.1/24"]',
        '    u1["eth1"]',
        '    n0{{"web<br>bridge<br>10.1.0.0/24<br>fd00:1::/64"}}',
        '    n1{{"db<br>bridge internal no-icc<br>10.2.0.0/24"}}',
        '    n2{{"lan<br>macvlan mode bridge<br>192.0.2.0/24"}}',
        '    n3{{"far<br>bridge<br>10.3.0.0/24"}}',
        '    s0["r1<br>pid:4711<br>8080 → 80<br>#91;::1#93;:53 → 5353/udp"]',
        '    s1["r2"]',
        '    s2["r3<br>sleep 60"]',
        "  end",
        "  outside --- u0",
        "  outside --- u1",
        '  u0 -. "masquerade" .- n0',
        "  u1 --- n2",
        '  u0 -. "snat 192.0.2.7" .- n3',
        '  n0 -- "eth0<br>10.1.0.2<br>fd00:1::2" --- s0',
        '  n1 -- "eth1<br>10.2.0.2" --- s0',
        '  n2 -- "eth0<br>192.0.2.9" --- s1',
        *(f"  style n{number} stroke:{PALETTES['light'][f'n{number}']},stroke-width:2px" for number in range(4)),
    ]


@given(st.text(max_size=60))
def test_no_name_ends_a_label_of_mermaid(name: str) -> None:
    shown = mermaid(Scene(name, (), (), (Namespace(name, name),), name))
    assert len(shown.splitlines()) == 5
    for line in shown.splitlines():
        assert line.count('"') in (0, 2)
        label = line.partition('"')[2].rpartition('"')[0].replace("<br>", "")
        assert not set(label) & set('"&<>`*_\\{}[]()|~$%'), line


# --- the terminal --------------------------------------------------------------------------------------------------------------------


def test_the_drawing_for_a_terminal_shows_all_of_it() -> None:
    assert lines(SCENE, 80) == DRAWN.splitlines()


def test_colour_changes_nothing_but_colour() -> None:
    plain, coloured = lines(SCENE, 80), lines(SCENE, 80, colour=True)
    assert plain != coloured
    assert [re.sub(r"\x1b\[\d+m", "", line).rstrip() for line in coloured] == plain
