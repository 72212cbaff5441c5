"""The main job, from nothing, on this machine: a hub, three nodes, real models, and what goes wrong on the road.

Run by `scripts/demo`. Hub and nodes are the product's own processes, driven by the product's own commands. Every step
is checked as it happens; a step that does not hold says what was seen instead, and `--once` then exits 1.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from scene import DATA, MODEL, Scene, Step, StepError

from bundles import (  # scene says where they are: the tests' own
    digits_bundle,
    paired_bundle,
    slow_bundle,
    wrong_bundle,
)
from heliograph.lab import Realm
from heliograph.lab.profiles import load_profile
from heliograph_hub.client import HubClient

NODES = (("shop-1/till", "canary"), ("shop-2/till", "early"), ("plant-1/gateway", "general"))
CANARY, EARLY, GENERAL = (node for node, _ in NODES)
FAST, SLOW = "shop2m", "m256"
"""Profiles of the links: for the first release, and for all that follows."""
CONFIG_1 = f'model = "{MODEL}"\nthresholds = {{ accept = 0.8 }}\n'
CONFIG_2 = f'model = "{MODEL}"\ngeneration = 2\nthresholds = {{ accept = 0.9 }}\n'
"""Made for features of generation 2, which 1.4.0 alone accepts; it accepts no config before this one."""
BUDGET = 'ring = "general"\nbudget.day_bytes = 2_000\n'
"""Less than the least that can be fetched, so that it is used up even if the day turns meanwhile."""
NO_BUDGET = 'ring = "general"\n'


class Demo(Scene):
    """The story, step by step."""

    def run(self) -> None:
        """All steps, in order.

        Raises:
            StepError: a step did not hold.
        """
        self.set_up()
        self.full()
        self.delta()
        self.broker_killed()
        self.link_cut()
        self.wrong_outputs()
        self.slow_release()
        self.hub_away()
        self.denied()
        self.need_each_other()
        self.budget()

    def set_up(self) -> None:
        with self.step("a hub with its broker, and three nodes, each on its own link") as step:
            self.realm.init()
            self.hub = HubClient(str(self.realm.hub_dir))
            self.realm.start_hub()
            for node, ring in NODES:
                self.realm.cli("fleet", "assign", node.split("/")[0], ring)
                self.realm.join(node, profile=FAST)
                self.realm.start_node(node)
            self.wait("three nodes heard", lambda: sum(n["link"] == "up" for n in self.realm.fleet()) == len(NODES))
            broker = "iotcore" if "iotcore" in (self.realm.folder / "hub.log").read_text() else "mosquitto"
            road = self.realm.roads[CANARY]
            step.facts |= {"broker": broker, "nodes": [node for node, _ in NODES], "links": road.kind, "why": road.why}
            how = "network namespaces" if road.kind == "namespaces" else f"proxies without loss ({road.why})"
            step.facts["told"] = f"broker {broker}, links of 2 Mbit/s by {how}"

    def full(self) -> None:
        with self.step("1.0.0 arrives in full, ring by ring, and is proven under load") as step:
            digits_bundle(self.work / "1.0.0", "1.0.0", DATA / "digits_base_int8.tflite", soak_max_s=60)
            shown = self.publish(self.work / "1.0.0", "1.0.0")
            full = sum(file["length"] for file in shown["files"])
            nodes = [node for node, _ in NODES]
            before = {node: self.received(node) for node in nodes}
            with self.bars(nodes, dict.fromkeys(nodes, full)):
                self.realm.cli("rollout", "start", f"{MODEL}@1.0.0")
                self.wait_for_answers(CANARY, "1.0.0")
                self.realm.cli("rollout", "promote", f"{MODEL}@1.0.0", "--to", "general")
                for node in nodes[1:]:
                    self.wait_for_answers(node, "1.0.0")
                for node in nodes:
                    self.wait(f"{node} to prove 1.0.0", partial(self.is_proven, node, "1.0.0"))
            step.facts |= {"bytes": {node: self.received(node) - before[node] for node in nodes}, "image_bytes": full}
            step.facts["told"] = f"{full:,} bytes of release to each node"

    def delta(self) -> None:
        with self.step("the links shrink to 256 kbit/s and 300 ms; 1.1.0 arrives as a delta") as step:
            for road in self.realm.roads.values():
                road.reshape(load_profile(SLOW))
            digits_bundle(self.work / "1.1.0", "1.1.0", DATA / "digits_head_int8.tflite", soak_max_s=60)
            shown = self.publish(self.work / "1.1.0", "1.1.0")
            before = self.received(CANARY)
            with self.bars([CANARY], {CANARY: 445_000}):
                self.realm.cli("rollout", "start", f"{MODEL}@1.1.0")
                self.wait("canary on 1.1.0", lambda: self.serves(CANARY, f"{MODEL}@1.1.0"))
            self.cost = self.hub.get(f"/v1/releases/{MODEL}/1.1.0")["costs"][f"{MODEL}@1.0.0"]
            self.bytes["delta"] = self.received(CANARY) - before
            self.bytes["full"] = sum(file["length"] for file in shown["files"])
            if not self.bytes["delta"] * 2 < self.bytes["full"]:
                raise StepError(f"the delta step took {self.bytes['delta']} of {self.bytes['full']} bytes")
            share = self.bytes["delta"] / self.bytes["full"]
            step.facts |= {"share": round(share, 4), **self.bytes}
            step.facts["told"] = f"{self.bytes['delta']:,} bytes instead of {self.bytes['full']:,} ({share:.1%})"

    def broker_killed(self) -> None:
        with self.step("the broker is killed in mid-fetch, the node resumes") as step:
            self._interrupted(step, EARLY, self.realm.kill_broker)

    def link_cut(self) -> None:
        def cut() -> None:
            road = self.realm.roads[GENERAL]
            road.cut()
            self.wait("the node to notice its cut link", lambda: self.status(GENERAL)["link"] == "down")
            road.restore()

        with self.step("a link is cut in mid-fetch, the node resumes") as step:
            self._interrupted(step, GENERAL, cut)

    def _interrupted(self, step: Step, node: str, interrupt: Callable[[], None]) -> None:
        """Promotes 1.1.0 to the node's ring, interrupts its fetch, and counts what crossed twice."""
        before, sent = self.received(node), self.known(node)["bytes_sent"]
        self.realm.cli("rollout", "promote", f"{MODEL}@1.1.0")
        third = self.cost // 3
        self.wait("the fetch to be under way", lambda: self.known(node)["bytes_sent"] - sent > third, limit_s=60)
        interrupt()
        phase = self.model(node)["phase"]
        self.wait(f"{node} on 1.1.0", lambda: self.serves(node, f"{MODEL}@1.1.0"))
        took = self.received(node) - before
        resent = max(0, self.known(node)["bytes_sent"] - sent - self.cost)
        if phase != "fetching":
            raise StepError(f"the node was {phase}, not fetching, when it was interrupted")
        if took > self.bytes["delta"] * 1.6:
            raise StepError(f"the node received {took} bytes for a delta of {self.bytes['delta']}: it started over")
        self.bytes["resent"] += resent
        step.facts |= {"received": took, "resent": resent}
        step.facts["told"] = f"{took:,} bytes received in all, {resent:,} sent twice"

    def wrong_outputs(self) -> None:
        with self.step("1.2.0, signed and approved, gives wrong outputs and is refused") as step, self.no_failures():
            wrong_bundle(self.work / "1.2.0", "1.2.0", DATA / "digits_head_int8.tflite")
            self.publish(self.work / "1.2.0", "1.2.0")
            self.realm.cli("rollout", "start", f"{MODEL}@1.2.0")
            refusal = self.wait("the canary to refuse 1.2.0", lambda: self.refusal(CANARY, "1.2.0"))
            if not self.serves(CANARY, f"{MODEL}@1.1.0"):
                raise StepError("the canary no longer serves 1.1.0")
            told = self.wait("the hub to know", lambda: self.known(CANARY)["models"][MODEL]["refused"])
            step.facts |= {"refused": refusal, "hub": told}
            step.facts["told"] = f"{CANARY} still serves 1.1.0; reason: {refusal['reason']}"

    def slow_release(self) -> None:
        with self.step("1.3.0 gives right outputs, turns slow under load, is rolled back") as step, self.no_failures():
            slow_bundle(self.work / "1.3.0", "1.3.0")
            self.publish(self.work / "1.3.0", "1.3.0")
            before = self.received(CANARY)
            self.realm.cli("rollout", "start", f"{MODEL}@1.3.0")
            refusal = self.wait("the canary to give 1.3.0 up", lambda: self.refusal(CANARY, "1.3.0"), limit_s=120)
            self.wait("1.1.0 to answer again", lambda: self.serves(CANARY, f"{MODEL}@1.1.0"))
            incident = self.wait("the hub to hear of it", lambda: self.record(CANARY, "incident", "rolled-back"))
            step.facts |= {"refused": refusal, "bytes": self.received(CANARY) - before, "incident": incident["body"]}
            step.facts["told"] = f"{refusal['reason']}; {self._switch_told(incident['body'])}, 0 failed requests"

    @staticmethod
    def _switch_told(body: dict[str, Any]) -> str:
        """What a switch back took, as its incident says."""
        detect_s, restore_ms = (body["detect_ms"] or 0) / 1000, body["restore_ms"]
        return f"detected after {detect_s:.1f} s and {body['answered']} slow answers, restored in {restore_ms:.0f} ms"

    def hub_away(self) -> None:
        node = GENERAL
        with self.step("the hub goes away, a node restarts and serves") as step:
            self.realm.kill_hub()
            self.wait("the node to notice", lambda: self.status(node)["link"] == "down")
            with self.traffic.paused(node):
                self.realm.kill_node(node)
                self.realm.start_node(node)
                self.wait(f"{node} to serve 1.1.0", lambda: self.serves(node, f"{MODEL}@1.1.0"))
            waiting = self.wait(
                "records to be made", lambda: sum(x["kept"] for x in self.status(node)["outbox"].values())
            )
            step.facts["waiting"] = waiting
            step.facts["told"] = f"{node} answers from 1.1.0 with no hub and no broker; records waiting: {waiting}"
        with self.step("the hub returns, records made meanwhile arrive once") as step:
            self.realm.start_hub()
            lanes = self.wait("every record receipted", lambda: self._receipted(node))
            step.facts["lanes"] = lanes
            total = sum(lane["kept"] for lane in lanes.values())
            step.facts["told"] = f"{total} records, none lost, none doubled"

    def denied(self) -> None:
        with self.step("1.1.0 is denied: every node serves 1.0.0, the cut one as soon as it returns") as step:
            with self.no_failures():
                road = self.realm.roads[GENERAL]
                road.cut()
                self.wait("the node to notice its cut link", lambda: self.status(GENERAL)["link"] == "down", 120)
                key = self.realm.hub_dir / "keys" / "deny-1.key"
                began = time.monotonic()
                self.realm.cli("release", "deny", f"{MODEL}@1.1.0", "--key", key, "--reason", "mislabelled sevens")
                for node in (CANARY, EARLY):
                    self.wait(f"{node} on 1.0.0", partial(self.serves, node, f"{MODEL}@1.0.0"), limit_s=30)
                connected_s = round(time.monotonic() - began, 1)
                if not self.serves(GENERAL, f"{MODEL}@1.1.0"):
                    raise StepError(f"{GENERAL} is cut off and yet left 1.1.0")
                road.restore()
                back = time.monotonic()
                self.wait(f"{GENERAL} on 1.0.0", lambda: self.serves(GENERAL, f"{MODEL}@1.0.0"))
                returned_s = round(time.monotonic() - back, 1)
            step.facts |= {"connected_s": connected_s, "returned_s": returned_s}
            step.facts["told"] = (
                f"connected nodes after {connected_s} s, the cut one {returned_s} s after its link came back"
            )

    def need_each_other(self) -> None:
        name = f"{MODEL}@1.4.0"
        with self.step("1.4.0 and config 2 need each other: whichever comes first waits for the other") as step:
            with self.no_failures():
                self.set_document("config", CONFIG_1)
                for node, _ in NODES:
                    self.wait(f"{node} to answer with config 1", partial(self.serves_with, node, "1.0.0", 1))
                self.traffic.seen.clear()
                paired_bundle(self.work / "1.4.0", "1.4.0", DATA / "digits_base_int8.tflite", config=2, generation=2)
                self.publish(self.work / "1.4.0", "1.4.0")
                self.realm.cli("rollout", "start", name)
                release = self.wait(f"{CANARY} to hold 1.4.0", lambda: self.waits(CANARY, "config/digits is 1"))
                self.set_document("config", CONFIG_2)
                self.wait(f"{CANARY} on both", lambda: self.serves_with(CANARY, "1.4.0", 2))
                config = self.wait(f"{EARLY} to hold config 2", partial(self.holds_back, EARLY, 2))
                if not self.serves_with(EARLY, "1.0.0", 1):
                    raise StepError(f"{EARLY} no longer serves 1.0.0 with config 1")
                self.realm.cli("rollout", "promote", name)
                self.wait(f"{EARLY} on both", lambda: self.serves_with(EARLY, "1.4.0", 2))
            self.check_pairs()
            step.facts |= {"release_held": {CANARY: release}, "config_held": {EARLY: config}}
            missing, unfit = release.partition("fit: ")[2], config.partition("held back: ")[2]
            step.facts["told"] = (
                f"{CANARY} held 1.4.0: {missing}; {EARLY} held config 2: {unfit}; "
                "each then took both at once, and no answer came from one without the other"
            )

    def budget(self) -> None:
        name, node = f"{MODEL}@1.4.0", GENERAL
        with self.step("a budget of bytes a day makes a node wait, in words, until it is lifted") as step:
            with self.no_failures():
                self.set_document("policy", BUDGET)
                self.wait(f"{node} under policy 1", lambda: self.status(node)["documents"]["policy"] == 1)
                before = self.received(node)
                self.realm.cli("rollout", "promote", name)
                why = self.wait(f"{node} to wait for its budget", lambda: self.waits(node, "budget"))
                self.wait("the hub to know", lambda: self.hub_says_waiting(name, node, why))
                if not self.serves_with(node, "1.0.0", 1):
                    raise StepError(f"{node} no longer serves 1.0.0 with config 1")
                waited = self.received(node) - before
                self.set_document("policy", NO_BUDGET)
                self.wait(f"{node} on 1.4.0 with config 2", lambda: self.serves_with(node, "1.4.0", 2))
                took = self.received(node) - before - waited
            self.check_pairs()
            requests = {"answered": self.traffic.answered, "failed": self.traffic.failed}
            step.facts |= {"waiting": why, "bytes": {"waiting": waited, "then": took}, "requests": requests}
            step.facts["told"] = (
                f"{node} waited for {why}; 1.4.0 took {took:,} bytes then; "
                f"{self.traffic.answered} requests in all, {len(self.traffic.failed)} failed"
            )

    def waits(self, node: str, word: str) -> str:
        """What `node status` says the node waits for, if the words are in it."""
        waiting = str(self.model(node)["waiting"])
        return waiting if word in waiting else ""

    def holds_back(self, node: str, config: int) -> str:
        """Why `node status` says the node holds a config back; empty if it doesn't."""
        name = (f"config/{MODEL}", config)
        held = self.status(node)["documents"]["candidates"]
        found = (str(one["reason"]) for one in held if (one["document"], one["number"]) == name)
        return next(found, "")

    def hub_says_waiting(self, release: str, node: str, why: str) -> bool:
        """Whether `rollout status` says of the node what the node says of itself."""
        rings = self.realm.cli_json("rollout", "status", release)["rings"]
        return any(row["node"] == node and row["reason"] == why for ring in rings for row in ring["waiting"])

    def check_pairs(self) -> None:
        """No answer came from a release with the other one's config.

        Raises:
            StepError: one did.
        """
        wrong = {pair for pair in self.traffic.seen if (pair[1] == "1.4.0") != (pair[2] == 2)}
        if wrong:
            raise StepError(f"answers came from releases with configs that may not meet: {sorted(wrong)}")

    def _receipted(self, node: str) -> dict[str, Any] | None:
        """Per lane what the hub holds of the node, once every record of the node is there and the sums agree.

        The node's own word: nothing waits (`kept` is 0) and all of this run is acknowledged. The hub's word: of all
        runs together kept + merged + lost is what was written, nothing is missing; rows are unique by their number.
        """
        outbox = self.status(node)["outbox"]
        if any(lane["kept"] or lane["next_seq"] != lane["acked_seq"] for lane in outbox.values()):
            return None
        lanes: dict[str, Any] = self.known(node)["records"]
        if any(lane["missing"] or lane["lost"] for lane in lanes.values()):
            raise StepError(f"records of {node} are missing: {lanes}")
        return lanes


def look(demo: Demo) -> str:
    """What a person can do with a demo that stays up."""
    realm = demo.realm
    node = CANARY
    body = json.dumps(demo.traffic.request["inputs"][0] | {"data": [0] * 256})
    return f"""
It stays up. In another terminal:

  export HELIOGRAPH_HUB={realm.hub_dir}
  heliograph fleet list                     # every node, as it last reported
  heliograph rollout status {MODEL}@1.1.0
  heliograph node status {realm.node_dir(node)}
  curl -s {realm.url(node)}/v2/models/{MODEL}/infer -d '{{"inputs": [{body}]}}'

(heliograph is {Path(sys.executable).parent / "heliograph"}; logs are in {realm.folder})
Ctrl-C ends everything and removes {realm.folder}.
"""


def main() -> int:
    """Runs the demo; 0 only if every step held, 130 if ctrl-C came before that."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--once", action="store_true", help="end after the last step; exit 0 only if every step held")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write steps, facts and bytes to FILE")
    args = parser.parse_args()
    console = Console()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="heliograph-demo-"))
    held, keep, code = False, True, 1
    with Realm(folder / "realm") as realm:
        demo = Demo(realm, folder, console)
        try:
            demo.run()
            held, keep, code = True, False, 0
            if not args.once:
                console.print(look(demo), highlight=False, markup=False, soft_wrap=True)
                signal.pause()
        except StepError as error:
            console.print(f"[red]stopped:[/] {error}\nlogs are in {realm.folder}", highlight=False, soft_wrap=True)
        except (KeyboardInterrupt, SystemExit) as stop:
            # Ending everything takes a moment; a second ctrl-C would leave processes behind.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            console.print("stopping hub and nodes; nothing of the demo is kept")
            keep = False
            if not held:
                code = 143 if isinstance(stop, SystemExit) else 130
        finally:
            demo.traffic.stop()
            if args.json:
                facts = {"steps": [asdict(step) for step in demo.steps], "nodes": demo.nodes(), "bytes": demo.bytes}
                args.json.write_text(json.dumps(facts, indent=1) + "\n")
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
