"""The questions auditors ask, each a named query over the views. `cai audit query RUN NAME` runs one."""

from __future__ import annotations

from typing import NamedTuple

from cai.errors import UserError


class Question(NamedTuple):
    """A named query."""

    name: str
    asks: str
    """The question in words."""
    sql: str
    needs: tuple[str, ...] = ()
    """Named parameters, or `other` where it reads a second run."""


_BIN = "min(9, CAST(10 * p AS INTEGER))"

QUESTIONS: dict[str, Question] = {
    q.name: q
    for q in (
        Question(
            "behind-pair",
            "What stands behind this training row? (-p pair=ID; `cai audit why` shows all of it)",
            """SELECT p.line, p.pair_id, d."order", d.principle_id, d.verdict, d.p_a, d.logprob_A, d.logprob_B,
                p.label, p.label_source, p.override_id, p.prompt, p.a, p.b, d.decision_id, d.call_key
            FROM pairs p LEFT JOIN decisions d ON d.pair_id = p.pair_id WHERE p.pair_id LIKE :pair || '%'
            ORDER BY d.seq""",
            ("pair",),
        ),
        Question(
            "order-flips",
            "Which pairs changed sides when the order was swapped, and how often per principle?",
            """SELECT principle_id, count(*) AS n, sum(flipped) AS flipped, avg(flipped) AS rate,
                wilson_low(sum(flipped), count(*)) AS low, wilson_high(sum(flipped), count(*)) AS high,
                group_concat(CASE WHEN flipped THEN substr(pair_id, 1, 11) END, ' ') AS pairs
            FROM (SELECT one.principle_id, one.pair_id, one.verdict IN ('a', 'b') AND two.verdict IN ('a', 'b')
                    AND one.verdict <> two.verdict AS flipped
                FROM decisions one JOIN decisions two ON two.pair_id = one.pair_id
                    AND two.question_id = one.question_id AND one."order" = 'ab' AND two."order" = 'ba')
            GROUP BY principle_id ORDER BY rate DESC""",
        ),
        Question(
            "principles-decide",
            "How often does each principle decide, and for the longer, listed, first shown, revised answer?",
            """SELECT v.principle_id, count(*) AS due, sum(v.stand = 'votes') AS votes,
                avg(v.stand = 'votes') AS votes_rate,
                avg(CASE WHEN v.label IN ('a', 'b') AND p.words_a <> p.words_b
                    THEN (v.label = 'a') = (p.words_a > p.words_b) END) AS for_longer,
                avg(CASE WHEN v.label IN ('a', 'b') AND p.list_a <> p.list_b
                    THEN (v.label = 'a') = (p.list_a > p.list_b) END) AS for_list,
                (SELECT avg(d.picked_first) FROM decisions d WHERE d.principle_id = v.principle_id
                    AND d.mode <> 'check') AS for_first_shown,
                avg(CASE WHEN v.label IN ('a', 'b') AND p.source = 'revision' THEN v.label = 'b' END) AS for_revision
            FROM votes v JOIN pairs p USING (pair_id) GROUP BY v.principle_id ORDER BY votes DESC""",
        ),
        Question(
            "principles-conflict",
            "Which principles disagree on the same pair, and which are seldom relevant?",
            """SELECT one.principle_id, two.principle_id AS other, count(*) AS both_vote,
                sum(one.label <> two.label AND 'tie' NOT IN (one.label, two.label)) AS conflicts,
                avg(one.label <> two.label AND 'tie' NOT IN (one.label, two.label)) AS conflict_rate,
                (SELECT avg(x.stand = 'votes') FROM votes x WHERE x.principle_id = one.principle_id) AS relevance,
                (SELECT avg(x.stand = 'votes') FROM votes x WHERE x.principle_id = two.principle_id) AS other_relevance
            FROM votes one JOIN votes two ON two.pair_id = one.pair_id AND one.principle_id < two.principle_id
            WHERE one.label IS NOT NULL AND two.label IS NOT NULL
            GROUP BY 1, 2 ORDER BY conflict_rate DESC""",
        ),
        Question(
            "invalid",
            "Which verdicts are invalid, by cause?",
            """SELECT reason, principle_id, count(*) AS n, min(decision_id) AS example, min(raw_reply) AS example_reply
            FROM decisions WHERE verdict IN ('invalid', 'refused') GROUP BY reason, principle_id ORDER BY n DESC""",
        ),
        Question(
            "low-margin",
            "Which decisions were close, and which confident ones did people overturn?",
            """SELECT p.pair_id, p.phase, p.judge_p_a, p.judge_label, p.label, p.label_source,
                CASE WHEN p.label_source <> 'judge' THEN 'overturned' ELSE 'low margin' END AS why
            FROM pairs p WHERE abs(p.judge_p_a - 0.5) < 0.1
                OR (p.label_source <> 'judge' AND p.label <> p.judge_label AND abs(p.judge_p_a - 0.5) >= 0.3)
            ORDER BY abs(p.judge_p_a - 0.5)""",
        ),
        Question(
            "judge-and-people",
            "Judge against people, by stratum and queue? (`cai review agreement` adds kappa, AC1 and intervals)",
            """SELECT r.queue, r.stratum, p.judge_label, r.label AS human_label, count(*) AS n,
                avg(p.judge_label = r.label) AS agreed
            FROM reviews r JOIN pairs p USING (pair_id)
            WHERE r.holds AND r.blind AND r.label IS NOT NULL AND r.repeats IS NULL AND r.principle_id IS NULL
            GROUP BY r.queue, r.stratum, p.judge_label, r.label ORDER BY r.queue, r.stratum, n DESC""",
        ),
        Question(
            "changed",
            "Which labels differ from another run's? (--with RUN; `cai audit compare` says why)",
            """SELECT p.pair_id, p.prompt, p.label, o.label AS other_label, p.p_a, o.p_a AS other_p_a,
                (SELECT group_concat(v.principle_id, ' ') FROM votes v JOIN other_votes w
                    ON w.pair_id = o.pair_id AND w.principle_id = v.principle_id
                    WHERE v.pair_id = p.pair_id AND v.label IS NOT w.label) AS principles
            FROM pairs p JOIN other_pairs o ON o.prompt = p.prompt AND o.a = p.a AND o.b = p.b
            WHERE p.label IS NOT o.label""",
            ("other",),
        ),
        Question(
            "overrides",
            "Who set which label, when and why, and what did that change in the exported pairs?",
            """SELECT o.time, o.author, o.reason, o.blind, o.holds, o.n_votes, o.n_settled, o.pair_id, p.judge_label,
                o.label AS set_to, p.state, p.line, p.chosen_arm,
                CASE WHEN p.judge_label IS o.label THEN 'nothing'
                    WHEN p.chosen_arm IS NULL THEN 'no row is made of it' WHEN p.line IS NULL THEN 'cai pairs is due'
                    ELSE 'line ' || p.line || ' of pairs.jsonl' END AS changed
            FROM overrides o LEFT JOIN pairs p USING (pair_id) ORDER BY o.seq""",
        ),
        Question(
            "calibration",
            "When the judge is sure, is it right? Ten bins of confidence, with Brier score and ECE",
            f"""WITH said AS (
                SELECT CASE WHEN p.judge_p_a >= 0.5 THEN p.judge_p_a ELSE 1 - p.judge_p_a END AS p,
                    (CASE WHEN p.judge_p_a >= 0.5 THEN 'a' ELSE 'b' END) = r.label AS hit
                FROM reviews r JOIN pairs p USING (pair_id)
                WHERE r.holds AND r.blind AND r.label IN ('a', 'b') AND r.queue = 'estimate' AND r.repeats IS NULL
                    AND r.principle_id IS NULL AND p.judge_p_a IS NOT NULL),
            bins AS (SELECT {_BIN} AS bin, count(*) AS n, avg(p) AS said, avg(hit) AS right FROM said GROUP BY 1)
            SELECT bin / 10.0 AS from_p, (bin + 1) / 10.0 AS to_p, n, said, right,
                (SELECT avg((p - hit) * (p - hit)) FROM said) AS brier,
                (SELECT sum(n * abs(said - right)) / sum(n) FROM bins) AS ece
            FROM bins ORDER BY bin""",
        ),
        Question(
            "constant-texts",
            "Are critiques nearly constant, do texts recur, does one text win against everything?",
            """SELECT 'critique' AS kind, normal(text) AS text, count(*) AS n,
                count(DISTINCT prompt_id) AS prompts, NULL AS win_rate
            FROM critiques WHERE passed IS NULL GROUP BY 2 HAVING count(*) > 1
            UNION ALL
            SELECT 'answer', text, count(*), count(DISTINCT prompt_id), avg(won) FROM (
                SELECT normal(a) AS text, prompt_id,
                    CASE WHEN normal(a) <> normal(b) THEN (label = 'a') + 0.5 * (label = 'tie') END AS won FROM pairs
                UNION ALL SELECT normal(b), prompt_id,
                    CASE WHEN normal(a) <> normal(b) THEN (label = 'b') + 0.5 * (label = 'tie') END FROM pairs)
            GROUP BY text HAVING count(DISTINCT prompt_id) > 1 ORDER BY n DESC""",
        ),
        Question(
            "injections",
            "Which answers speak to the judge, and did the judge follow?",
            """SELECT p.pair_id, p.phase, injection(p.a) AS in_a, injection(p.b) AS in_b,
                (SELECT group_concat(DISTINCT d.flag) FROM decisions d WHERE d.pair_id = p.pair_id) AS flags,
                p.judge_label, p.judge_label = CASE WHEN injection(p.a) THEN 'a' ELSE 'b' END AS followed
            FROM pairs p WHERE injection(p.a) <> injection(p.b) OR p.pair_id IN (
                SELECT pair_id FROM decisions WHERE flag IS NOT NULL)""",
        ),
        Question(
            "retried",
            "Do decisions that were asked more than once come out differently?",
            """SELECT attempts > 1 AS retried, count(*) AS n, avg(verdict = 'a') AS a, avg(verdict = 'b') AS b,
                avg(verdict = 'tie') AS tie, avg(verdict IN ('invalid', 'refused')) AS unusable,
                avg(picked_first) AS picked_first
            FROM decisions WHERE attempts IS NOT NULL GROUP BY 1""",
        ),
        Question(
            "cost",
            "What did a kept pair cost: tokens, seconds, calls; and how much came from a cache?",
            """SELECT kept, calls, prompt_tokens, completion_tokens, seconds, reused,
                (prompt_tokens + completion_tokens) * 1.0 / nullif(kept, 0) AS tokens_per_kept_pair,
                seconds / nullif(kept, 0) AS seconds_per_kept_pair,
                reused * 1.0 / nullif(reused + calls, 0) AS reused_share,
                cached * 1.0 / nullif(prompt_all, 0) AS prefix_cache_share
            FROM (SELECT (SELECT count(*) FROM pairs WHERE chosen_arm IS NOT NULL) AS kept, sum(made) AS calls,
                sum(prompt_tokens) AS prompt_tokens, sum(completion_tokens) AS completion_tokens,
                sum(seconds) AS seconds, sum(reused) AS reused FROM sessions),
            (SELECT sum(n_cached) AS cached, sum(n_prompt) AS prompt_all FROM calls WHERE n_cached IS NOT NULL)""",
        ),
        Question(
            "chain",
            "Does the ledger's chain hold, and do ids and replies fit? (`cai audit verify` and `replay` check it all)",
            """SELECT 'ledger' AS place, CAST(seq AS TEXT) AS name, 'does not follow from the row before' AS what FROM (
                SELECT seq, hash, chain_hash(lag(hash) OVER (ORDER BY seq), tag, body) AS computed FROM store.ledger)
            WHERE hash <> computed
            UNION ALL SELECT 'ledger', CAST(seq AS TEXT), 'has another content than its id' FROM store.ledger
                WHERE record_id(tag, body) IS NOT id
            UNION ALL SELECT 'records', id, 'has another content than its id' FROM store.records
                WHERE record_id(tag, body) IS NOT id
            UNION ALL SELECT 'calls', key, 'has another reply than its id' FROM store.calls
                WHERE bytes_id(reply) <> reply_id
            UNION ALL SELECT 'calls', call_key, 'holds another reply than the judgment was read from' FROM decisions
                WHERE call_key IS NOT NULL AND bytes_id(raw_reply) IS NOT reply_id""",
        ),
        Question(
            "leaks",
            "Is anything trained on that also stands among the held-out prompts?",
            """SELECT t.position AS train_position, h.position AS held_out_position, t.text
            FROM prompts t JOIN prompts h ON normal(t.text) = normal(h.text)
            WHERE t.side = 'train' AND h.side = 'held_out'""",
        ),
    )
}


def named(name: str) -> Question:
    """Return the query of this name. Raises UserError."""
    if name not in QUESTIONS:
        raise UserError(f"'{name}': no such named query; there are {', '.join(QUESTIONS)}, or give a SELECT")
    return QUESTIONS[name]
