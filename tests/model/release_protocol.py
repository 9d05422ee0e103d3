"""A model of the release protocol, and the proof that no key leaves without a fresh, matching appraisal: `make model`.

The rules of docs/formats/release-protocol.md as transitions, over any number of sessions, nonces, guest keys and codes
(a code stands for measurement and job). Around them is an attacker who owns the network, the hosts and enclaves of its
own code: it sends any message at any time, mixes nonces, keys and quotes of different conversations, replays them,
restarts the service; owners change policies in between. What it cannot do is assumed, and nothing else: make a quote
that no enclave asked for, guess a nonce, or have a good code name a key that is not its own.

Shown, by induction over all steps (z3), of every release of a key, sealed to guest key K in session s:

1. an enclave asked for a quote that names K and the nonce of s, after s had begun; the service took it within a minute
   of that, and once; the lease has not ended;
2. the code of that quote is one that the policy in force at the release allows;
3. so if the policy allows good codes only, K is a key that a good code holds.

A model that cannot fail shows nothing: without each single rule the same model has an attack, which is searched for
from the beginning and printed.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from typing import Any

import z3

__all__ = ["ATTACKS", "RULES", "attack", "prove"]

NONCE_LIFETIME_S, LEASE_S = 60, 3600

RULES = {
    "unused nonce": "auth gives out a nonce that was never given out before",
    "challenge spent": "an attestation uses the challenge up",
    "nonce in time": "the challenge is at most a minute old",
    "nonce of session": "the message names the nonce of this session",
    "report data: nonce": "the quote's report data is computed with the message's nonce",
    "report data: key": "the quote's report data is computed with the message's key",
    "quote signed": "an enclave of this code asked for this quote",
    "sealed to key": "a release is sealed to the key of the attestation",
    "attested": "a release needs an attested session",
    "lease": "a release needs a lease that has not ended",
    "policy in force": "the policy at the release decides, not an earlier one",
    "restart forgets": "a restarted service knows no session",
}
ATTACKS = [rule for rule in RULES if rule != "restart forgets"]
"""Rules that are needed for what is shown. That a restart forgets only costs guests another attestation."""


class World:
    """Sorts and everything that does not change; with `size` finite, for the search for attacks."""

    def __init__(self, size: int | None = None) -> None:
        self.context = z3.Context()
        self._values: dict[Any, list[Any]] = {}
        self.session, self.nonce, self.key, self.code = (
            self._sort(name, size) for name in ("session", "nonce", "key", "code")
        )
        self.good = self.function("good", self.code, self.bool)
        self.held = self.function("held", self.key, self.bool)  # by an enclave of good code

    @property
    def bool(self) -> Any:
        return z3.BoolSort(self.context)

    @property
    def int(self) -> Any:
        return z3.IntSort(self.context)

    def _sort(self, name: str, size: int | None) -> Any:
        if size is None:
            return z3.DeclareSort(name, self.context)
        sort, values = z3.EnumSort(name, [f"{name}{i}" for i in range(size)], ctx=self.context)
        self._values[sort] = values
        return sort

    def function(self, name: str, *sorts: Any) -> Any:
        return z3.Function(name, *sorts)

    def every(self, sorts: tuple[Any, ...], holds: Callable[..., Any]) -> Any:
        if not sorts:
            return holds()
        if all(sort in self._values for sort in sorts):
            return z3.And(*[holds(*values) for values in itertools.product(*(self._values[s] for s in sorts))])
        bound = [z3.FreshConst(sort) for sort in sorts]
        return z3.ForAll(bound, holds(*bound))


class State:
    """What the service, the world and the record of it hold at one moment. The record decides nothing."""

    def __init__(self, world: World, name: str) -> None:
        w = self.world = world
        self.sorts = {
            "waiting": (w.session, w.bool),  # the service's memory
            "nonce": (w.session, w.nonce),
            "begun": (w.session, w.int),
            "attested": (w.session, w.bool),
            "key": (w.session, w.key),
            "code": (w.session, w.code),
            "until": (w.session, w.int),
            "allowed": (w.code, w.bool),  # its database
            "quoted": (w.nonce, w.key, w.code, w.bool),  # what enclaves asked for
            "quoted_at": (w.nonce, w.key, w.code, w.int),
            "started": (w.session, w.bool),  # the record
            "issued": (w.nonce, w.bool),
            "proof": (w.session, w.nonce),
            "taken_at": (w.session, w.int),
            "taken": (w.nonce, w.bool),
            "now": (w.int,),
        }
        for part, sorts in self.sorts.items():
            made = z3.Const(f"{part}@{name}", *sorts) if len(sorts) == 1 else w.function(f"{part}@{name}", *sorts)
            setattr(self, part, made)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def becomes(self, after: State, **changes: Callable[..., Any]) -> Any:
        """Return that `after` is this state but for `changes`, and that any time may have passed."""
        same = [after.now >= self.now]
        for part, sorts in self.sorts.items():
            if part == "now":
                continue
            old, new = getattr(self, part), getattr(after, part)
            change = changes.get(part, old)
            same.append(self.world.every(sorts[:-1], lambda *at, new=new, change=change: new(*at) == change(*at)))
        return z3.And(*same)

    def first(self) -> Any:
        """Return that nothing has happened yet."""
        nothing = ("waiting", "attested", "quoted", "started", "issued", "taken")
        return z3.And(
            self.now >= 0,
            *[self.world.every(self.sorts[p][:-1], lambda *at, p=p: z3.Not(getattr(self, p)(*at))) for p in nothing],
        )


def _at(place: Any, value: Any, old: Any) -> Callable[..., Any]:
    return lambda x: z3.If(x == place, value, old(x))


class Step:
    """One step between two states: `kinds` maps its name to the formula, over free choices of the attacker."""

    def __init__(self, before: State, after: State, without: str, name: str = "") -> None:
        w = before.world
        self.before, self.after = before, after

        def choice(what: str, sort: Any) -> Any:
            return z3.Const(f"{what}!{name}", sort)

        self.session, self.nonce, self.key, self.code = (
            choice(*x) for x in (("s", w.session), ("n", w.nonce), ("k", w.key), ("c", w.code))
        )
        self.quote_nonce, self.quote_key = choice("qn", w.nonce), choice("qk", w.key)
        self.allow = choice("allow", w.bool)
        self._without = without
        self.kinds = {
            "auth": self._auth(),
            "quote": self._quote(),
            "attest": self._attest(),
            "refused attest": before.becomes(after, waiting=_at(self.session, False, before.waiting)),
            "release": z3.And(self._may_release(), before.becomes(after)),
            "policy": before.becomes(after, allowed=_at(self.code, self.allow, before.allowed)),
            "restart": self._restart(),
        }

    def _rule(self, name: str, guard: Any) -> Any:
        assert name in RULES
        return z3.BoolVal(True, self.before.world.context) if name == self._without else guard

    def _auth(self) -> Any:
        b, s, n = self.before, self.session, self.nonce
        return z3.And(
            z3.Not(b.started(s)),  # session ids are random too
            self._rule("unused nonce", z3.Not(b.issued(n))),
            b.becomes(
                self.after,
                waiting=_at(s, True, b.waiting),
                nonce=_at(s, n, b.nonce),
                begun=_at(s, b.now, b.begun),
                started=_at(s, True, b.started),
                issued=_at(n, True, b.issued),
            ),
        )

    def _quote(self) -> Any:
        # Of its own code an enclave names whatever the attacker likes; good code names a key that it holds.
        b, n, k, c = self.before, self.nonce, self.key, self.code
        here = lambda *at: z3.And(*[x == y for x, y in zip(at, (n, k, c), strict=True)])  # noqa: E731
        return z3.And(
            b.issued(n),
            z3.Implies(b.world.good(c), b.world.held(k)),
            b.becomes(
                self.after,
                quoted=lambda *at: z3.Or(b.quoted(*at), here(*at)),
                quoted_at=lambda *at: z3.If(z3.And(here(*at), z3.Not(b.quoted(*at))), b.now, b.quoted_at(*at)),
            ),
        )

    def _attest(self) -> Any:
        b, s = self.before, self.session
        return z3.And(
            b.waiting(s),
            self._rule("nonce in time", b.now <= b.begun(s) + NONCE_LIFETIME_S),
            self._rule("nonce of session", self.nonce == b.nonce(s)),
            self._rule("report data: nonce", self.quote_nonce == self.nonce),
            self._rule("report data: key", self.quote_key == self.key),
            self._rule("quote signed", b.quoted(self.quote_nonce, self.quote_key, self.code)),
            b.becomes(
                self.after,
                waiting=_at(s, self._without == "challenge spent", b.waiting),
                attested=_at(s, True, b.attested),
                key=_at(s, self.key, b.key),
                code=_at(s, self.code, b.code),
                until=_at(s, b.now + LEASE_S, b.until),
                proof=_at(s, self.quote_nonce, b.proof),
                taken_at=_at(s, b.now, b.taken_at),
                taken=_at(self.quote_nonce, True, b.taken),
            ),
        )

    def _may_release(self) -> Any:
        b, s = self.before, self.session
        return z3.And(
            self._rule("attested", b.attested(s)),
            self._rule("lease", b.now < b.until(s)),
            self._rule("policy in force", b.allowed(b.code(s))),
            self._rule("sealed to key", self.key == b.key(s)),
        )

    def _restart(self) -> Any:
        if self._without == "restart forgets":
            return self.before.becomes(self.after)
        no = z3.BoolVal(False, self.before.world.context)
        return self.before.becomes(self.after, waiting=lambda _s: no, attested=lambda _s: no)

    def shown(self) -> Any:
        """Return what a release must have behind it: 1., 2. and 3. above."""
        b, w, s, k = self.before, self.before.world, self.session, self.key
        quote = (b.proof(s), k, b.code(s))
        return z3.And(
            b.proof(s) == b.nonce(s),
            b.quoted(*quote),
            b.quoted_at(*quote) >= b.begun(s),
            b.taken_at(s) <= b.begun(s) + NONCE_LIFETIME_S,
            b.now < b.taken_at(s) + LEASE_S,
            b.allowed(b.code(s)),
            z3.Implies(w.every((w.code,), lambda c: z3.Implies(b.allowed(c), w.good(c))), w.held(k)),
        )


def _invariant(state: State) -> Any:
    w, x = state.world, state
    return z3.And(
        # Challenges: each of one session, issued when it began, and not taken while it waits.
        w.every((w.session,), lambda s: z3.Implies(x.waiting(s), z3.And(x.started(s), z3.Not(x.taken(x.nonce(s)))))),
        w.every((w.session,), lambda s: z3.Implies(x.started(s), z3.And(x.issued(x.nonce(s)), x.begun(s) <= x.now))),
        w.every(
            (w.session, w.session),
            lambda s, t: z3.Implies(z3.And(x.started(s), x.started(t), x.nonce(s) == x.nonce(t)), s == t),
        ),
        w.every((w.nonce,), lambda n: z3.Implies(x.taken(n), x.issued(n))),
        # Quotes: of good code only over keys that it holds; of a challenge only after it was issued.
        w.every(
            (w.nonce, w.key, w.code),
            lambda n, k, c: z3.Implies(
                x.quoted(n, k, c), z3.And(x.issued(n), z3.Implies(w.good(c), w.held(k)), x.quoted_at(n, k, c) <= x.now)
            ),
        ),
        w.every(
            (w.session, w.key, w.code),
            lambda s, k, c: z3.Implies(
                z3.And(x.started(s), x.quoted(x.nonce(s), k, c)), x.quoted_at(x.nonce(s), k, c) >= x.begun(s)
            ),
        ),
        # Attested sessions: by a quote for their own challenge and key.
        w.every(
            (w.session,),
            lambda s: z3.Implies(
                x.attested(s),
                z3.And(
                    x.started(s),
                    x.proof(s) == x.nonce(s),
                    x.quoted(x.proof(s), x.key(s), x.code(s)),
                    x.taken_at(s) <= x.begun(s) + NONCE_LIFETIME_S,
                    x.until(s) == x.taken_at(s) + LEASE_S,
                ),
            ),
        ),
    )


def prove(without: str = "") -> list[str]:
    """Return the obligations that do not hold; none means that what is shown is shown for any number of steps."""
    world = World()
    before, after = State(world, "0"), State(world, "1")
    step = Step(before, after, without)
    invariant = _invariant(before)
    wanted = {"at the beginning": z3.Implies(before.first(), invariant)}
    for kind, happens in step.kinds.items():
        wanted[f"kept by {kind}"] = z3.Implies(z3.And(invariant, happens), _invariant(after))
    wanted["every release"] = z3.Implies(z3.And(invariant, step.kinds["release"]), step.shown())
    once = z3.Not(before.taken(step.quote_nonce))
    wanted["every challenge once"] = z3.Implies(z3.And(invariant, step.kinds["attest"]), once)
    return [name for name, holds in wanted.items() if _solve(world, z3.Not(holds)) is not None]


def attack(without: str, steps: int = 6) -> list[str] | None:
    """Return the fewest steps to a release with less behind it than is shown (or a challenge taken twice), if any."""
    world = World(2)
    states = [State(world, str(i)) for i in range(steps + 1)]
    moves = [Step(a, b, without, str(i)) for i, (a, b) in enumerate(itertools.pairwise(states))]
    before: list[Any] = [states[0].first()]
    for count, move in enumerate(moves):
        kind, bad = "release", z3.Not(move.shown())
        if without == "challenge spent":
            kind, bad = "attest", move.before.taken(move.quote_nonce)
        if (model := _solve(world, z3.And(*before, move.kinds[kind], bad))) is not None:
            return [_told(model, m) for m in moves[:count]] + [_told(model, move, kind)]
        before.append(z3.Or(*move.kinds.values()))
    return None


def _solve(world: World, formula: Any) -> Any:
    solver = z3.Solver(ctx=world.context)
    solver.set("timeout", 120_000)
    solver.add(formula)
    answer = solver.check()
    assert answer != z3.unknown, solver.reason_unknown()
    return solver.model() if answer == z3.sat else None


def _told(model: Any, move: Step, kind: str = "") -> str:
    def value(term: Any) -> Any:
        return model.eval(term, model_completion=True)

    kind = kind or next(name for name, formula in move.kinds.items() if z3.is_true(value(formula)))
    said = f"{value(move.before.now)!s:>6} s  {kind}"
    if kind in ("auth", "attest", "release", "refused attest"):
        said += f" {value(move.session)}"
    if kind == "attest":
        code = value(move.code)
        good = "good" if z3.is_true(value(move.before.world.good(code))) else "the attacker's"
        said += f": message {value(move.nonce)} {value(move.key)}"
        said += f", quote {value(move.quote_nonce)} {value(move.quote_key)} {code} ({good})"
    if kind in ("auth", "quote"):
        said += f" {value(move.nonce)}"
    if kind == "quote":
        said += f" {value(move.key)} {value(move.code)}"
    if kind == "release":
        held = "a good enclave's" if z3.is_true(value(move.before.world.held(value(move.key)))) else "the attacker's"
        said += f": sealed to {value(move.key)} ({held})"
    if kind == "policy":
        said += f" {value(move.code)} {'allowed' if z3.is_true(value(move.allow)) else 'not allowed'}"
    return said


def main() -> int:
    """Check the model and its mutants; return 1 if one does not say what it must."""
    started = time.monotonic()
    failed = prove()  # by induction: for any number of steps, sessions, nonces, keys and codes
    print(f"all rules: {failed or 'every release has a fresh matching appraisal behind it'}")
    found = attack("")
    print(f"all rules: {'no attack of up to 6 steps (the search that finds those below)' if found is None else found}")
    wrong = bool(failed) or found is not None
    for rule in ATTACKS:
        steps = attack(rule)
        wrong |= steps is None
        print(f"\nwithout {rule!r} ({RULES[rule]}): {'an attack' if steps else 'NO ATTACK FOUND'}")
        print("\n".join(steps or []))
    print(f"\n{'the model does NOT hold' if wrong else 'the model holds'}, {time.monotonic() - started:.1f} s")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
