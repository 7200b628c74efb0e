# SPDX-License-Identifier: Apache-2.0
"""Timelines of ranks, written here in the form of the files, merged by the C code: the Chrome trace
has exactly these spans, the picture is well-formed and has them at the right places, the
communication that shows is counted here a second time, broken files are named.

usage: test_files.py MERGER
"""
import json
import os
import random
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree as ElementTree

MERGER = sys.argv.pop(1)
KINDS = ["compute", "send", "wait", "idle"]
SVG = "{http://www.w3.org/2000/svg}"
START = 10**12


def span(begin, end, kind, lane=0, layer=0, micro_batch=0, label="x"):
    return dict(begin=begin, end=end, kind=kind, lane=lane, layer=layer, micro_batch=micro_batch,
                label=label)


def line_of(s):
    return "%d %d %d %d %d %d %s\n" % (START + s["begin"], START + s["end"],
                                       KINDS.index(s["kind"]), s["lane"], s["layer"],
                                       s["micro_batch"], s["label"])


class Files(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)

    def path(self, name):
        return os.path.join(self.dir.name, name)

    def merge_texts(self, texts, title="title", at=0.0, window=0):
        paths = []
        for i, text in enumerate(texts):
            paths.append(self.path("rank-%d" % i))
            with open(paths[-1], "w", encoding="utf-8") as file:
                file.write(text)
        return subprocess.run([MERGER, self.path("chrome"), self.path("svg"), title, str(at),
                               str(window)] + paths, capture_output=True, text=True)

    def merge(self, ranks, lost=0, **more):
        texts = ["%d rank_%d %d %d\n" % (i, i, len(spans), lost) + "".join(map(line_of, spans))
                 for i, spans in enumerate(ranks)]
        run = self.merge_texts(texts, **more)
        self.assertEqual(run.returncode, 0, run.stderr)
        with open(self.path("chrome")) as file:
            chrome = json.load(file)
        return float(run.stdout), chrome["traceEvents"], ElementTree.parse(self.path("svg"))

    def rects(self, tree):
        """(x, width, text) of the spans, which are the rectangles with a title."""
        return [(float(r.get("x")), float(r.get("width")), r.find(SVG + "title").text)
                for r in tree.iter(SVG + "rect") if r.find(SVG + "title") is not None]

    def test_chrome_trace(self):
        ranks = [[span(0, 4000, "compute", 0, 7, 2, "attend"), span(4000, 5500, "wait", 0, 8, 1)],
                 [span(1500, 2000, "send", 0, 1, 0, "reply"),
                  span(0, 9000, "wait", 3, 5, 2, "fly")]]
        _, events, _ = self.merge(ranks)
        found = [e for e in events if e["ph"] == "X"]
        expected = [dict(ph="X", name=s["label"], cat=s["kind"], pid=rank, tid=s["lane"],
                         ts=s["begin"] / 1e3, dur=(s["end"] - s["begin"]) / 1e3,
                         args=dict(layer=s["layer"], micro_batch=s["micro_batch"]))
                    for rank, spans in enumerate(ranks) for s in spans]
        self.assertEqual(found, expected)
        self.assertEqual([e["args"]["name"] for e in events if e["ph"] == "M"],
                         ["rank 0 rank_0", "rank 1 rank_1"])

    def test_picture_places(self):
        """Quarters of the time are quarters of the picture's width."""
        quarter = 1000000
        _, _, tree = self.merge([[span(0, quarter, "compute", 0, 1, 0, "a"),
                                  span(quarter, 3 * quarter, "wait", 0, 1, 1, "b"),
                                  span(3 * quarter, 4 * quarter, "compute", 0, 2, 1, "c")]])
        (ax, aw, a), (bx, bw, b), (cx, cw, c) = self.rects(tree)
        self.assertAlmostEqual(bw, 2 * aw, places=1)
        self.assertAlmostEqual(cw, aw, places=1)
        self.assertAlmostEqual(bx, ax + aw, places=1)
        self.assertAlmostEqual(cx, bx + bw, places=1)
        self.assertEqual(a, "a (compute), layer 1, micro-batch 0: 1000.0 us")
        self.assertIn("(wait)", b)
        texts = [t.text for t in tree.iter(SVG + "text")]
        self.assertIn("a 1/0", texts)
        self.assertNotIn("b 1/1", texts)
        self.assertLess(cx + cw, float(tree.getroot().get("width")))
        # 4 ms in steps of 0.5, at their place
        marks = {t.text: float(t.get("x")) for t in tree.iter(SVG + "text")
                 if t.get("text-anchor") == "middle"}
        self.assertAlmostEqual(marks["1.0"], ax + aw, places=1)
        self.assertAlmostEqual(marks["4.0"], cx + cw, places=1)

    def test_picture_window(self):
        """The middle fifth of ten spans: two of them, over the whole width."""
        spans = [span(i * 1000, (i + 1) * 1000, "compute", 0, i, 0) for i in range(10)]
        _, _, whole = self.merge([spans])
        _, _, part = self.merge([spans], at=0.5, window=2000)
        self.assertEqual(len(self.rects(whole)), 10)
        self.assertEqual([r[2].split(",")[1] for r in self.rects(part)], [" layer 4", " layer 5"])
        marks = {t.text: float(t.get("x")) for t in part.iter(SVG + "text")
                 if t.get("text-anchor") == "middle"}
        self.assertAlmostEqual(marks["0.0050"], self.rects(part)[1][0], places=1)
        self.assertAlmostEqual(sum(r[1] for r in self.rects(part)),
                               sum(r[1] for r in self.rects(whole)), places=0)

    def test_picture_of_a_long_run_is_small(self):
        rng = random.Random(1)
        spans, at = [], 0
        for i in range(200000):
            length = rng.randrange(1, 1000)
            spans.append(span(at, at + length, "compute", 0, i % 8, i % 3))
            at += length
        _, events, tree = self.merge([spans])
        self.assertEqual(len(events), 1 + len(spans))
        self.assertTrue(4000 < len(self.rects(tree)) < 8000, len(self.rects(tree)))

    def test_picture_far_from_the_start(self):
        """A window of 1 us, 292 years after the first span: marks still end."""
        far = 2**63 - 1
        head = "0 a 2 0\n"
        run = self.merge_texts([head + "0 10 0 0 0 0 x\n%d %d 0 0 0 0 y\n" % (far - 500, far)],
                               at=1.0, window=1000)
        self.assertEqual(run.returncode, 0, run.stderr)
        tree = ElementTree.parse(self.path("svg"))
        marks = [line for line in tree.iter(SVG + "line") if line.get("stroke") == "#ddd"]
        self.assertTrue(5 <= len(marks) <= 11, len(marks))

    def test_lost_spans_are_told(self):
        _, _, tree = self.merge([[span(0, 10, "compute")], []], lost=21)
        self.assertIn("title (42 later spans had no room)",
                      [t.text for t in tree.iter(SVG + "text")])

    def test_text_is_escaped(self):
        _, _, tree = self.merge([[span(0, 10, "compute", label="a<b>&")]], title="<M> & \"N\"")
        self.assertIn("<M> & \"N\"", [t.text for t in tree.iter(SVG + "text")])
        self.assertTrue(self.rects(tree)[0][2].startswith("a<b>& "))

    def test_nothing_recorded(self):
        share, events, tree = self.merge([[], []])
        self.assertEqual((share, len(events), self.rects(tree)), (0, 2, []))

    def test_exposed_by_hand(self):
        # computes 0-10 and 30-40, the other rank 12-20: sends or waits show in 10-12 and 20-25;
        # nothing happens in 25-30.
        share, _, _ = self.merge([
            [span(0, 10, "compute"), span(10, 25, "wait"), span(30, 40, "compute")],
            [span(5, 12, "idle"), span(12, 20, "compute"), span(20, 22, "send"),
             span(40, 90, "wait"), span(0, 40, "wait", lane=1)]])
        self.assertAlmostEqual(share, 7 / 40, places=9)

    def test_exposed_at_random(self):
        """Against a count of every single ns."""
        rng = random.Random(2)
        for _ in range(20):
            ranks = []
            for _ in range(rng.randrange(1, 5)):
                at, spans = rng.randrange(50), []
                while at < 400:
                    end = at + rng.randrange(60)
                    spans.append(span(at, end, rng.choice(KINDS)))
                    at = end + rng.choice([0, 0, 7])
                spans.append(span(at, at + 5, "compute"))
                ranks.append(spans)
            share, _, _ = self.merge(ranks)
            every = [s for spans in ranks for s in spans]
            first = min(s["begin"] for s in every if s["kind"] == "compute")
            last = max(s["end"] for s in every if s["kind"] == "compute")

            def under_way(t, kinds):
                return any(s["begin"] <= t < s["end"] and s["kind"] in kinds for s in every)

            shown = sum(under_way(t, ("send", "wait")) and not under_way(t, ("compute",))
                        for t in range(first, last))
            self.assertAlmostEqual(share, shown / (last - first), places=8)

    def test_broken_files_are_named(self):
        good = line_of(span(0, 10, "compute"))
        for text, reason in [
                ("", "no timeline"), ("x y 0 0\n", "no timeline"), ('0 " 0 0\n', "no timeline"),
                ("0 a\n", "no timeline"), ("0 a\x01 0 0\n", "no timeline"),
                ("0 a 0 0", "no timeline"),
                ("0 a 2 0\n" + good + "1 2 3\n", "line 3 is no span"),
                ("0 a 1 0\n20 10 0 0 0 0 x\n", "line 2 is no span"),
                ("0 a 1 0\n-1 10 0 0 0 0 x\n", "line 2 is no span"),
                ("0 a 1 0\n10 20 4 0 0 0 x\n", "line 2 is no span"),
                ("0 a 1 0\n10 20 0 64 0 0 x\n", "line 2 is no span"),
                ("0 a 1 0\n10 20 0 0 0 0 x\\\n", "line 2 is no span"),
                ("0 a 1 0\n10 20 0 0 0 0 \u00e4\n", "line 2 is no span"),
                ("0 a 2 0\n" + good + good[:-1], "line 3 is no span"),
                ("0 a 2 0\n" + good, "has 1 of 2 spans"),
                ("0 a 0 0\n" + good, "has 1 of 0 spans"),
                ("0 a 1 0\n" + "1" * 400 + "\n", "line 2 is no span")]:
            run = self.merge_texts([text])
            self.assertEqual(run.returncode, 1, text)
            self.assertIn(self.path("rank-0") + ": " + reason, run.stderr)

    def test_missing_and_unwritable(self):
        run = subprocess.run([MERGER, self.path("c"), self.path("s"), "", "0", "0",
                              self.path("none")], capture_output=True, text=True)
        self.assertEqual(run.returncode, 1)
        self.assertIn("none", run.stderr)
        run = subprocess.run([MERGER, self.path("no/c"), self.path("s"), "", "0", "0"],
                             capture_output=True, text=True)
        self.assertEqual(run.returncode, 1)
        self.assertIn("no/c", run.stderr)


if __name__ == "__main__":
    unittest.main()
