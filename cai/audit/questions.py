"""The questions auditors ask, each a named query over the views. `cai audit query RUN NAME` runs one."""

from __future__ import annotations

from typing import NamedTuple

from cai.errors import UserError


class Question(NamedTuple):
    """A named query."""

    name: str
    about: int
    """Which of the sixteen things an auditor asks it answers, a part of it where several do; docs/audit.md has them."""
    asks: str
    """The question in words."""
    sql: str
    needs: tuple[str, ...] = ()
    """Named parameters, or `other` where it reads a second run."""


MEASURED = (
    "r.holds AND r.blind AND r.label IN ('a', 'b') AND r.queue = 'estimate' AND r.repeats IS NULL "
    "AND r.principle_id IS NULL AND p.judge_p_a IS NOT NULL"
)
"""What of `reviews r` and `pairs p` measures the judge's probabilities."""
_BIN = "min(9, CAST(10 * p AS INTEGER))"

QUESTIONS: dict[str, Question] = {
    q.name: q
    for q in (
        Question(
            "behind-pair",
            1,
            "What stands behind this training row? (-p pair=ID; `cai audit why` shows all of it)",
            """SELECT p.line, p.pair_id, d."order", d.principle_id, d.verdict, d.p_a, d.logprob_A, d.logprob_B,
                p.label, p.label_source, p.override_id, p.prompt, p.a, p.b, d.decision_id, d.call_key
            FROM pairs p LEFT JOIN decisions d ON d.pair_id = p.pair_id WHERE p.pair_id LIKE :pair || '%'
            ORDER BY d.seq""",
            ("pair",),
        ),
        Question(
            "order-flips",
            2,
            "Which pairs changed sides when the order was swapped, and how often per principle?",
            """SELECT principle_id, count(*) AS n, sum(flipped) AS flipped, avg(flipped) AS rate,
                wilson_low(sum(flipped), count(*)) AS low, wilson_high(sum(flipped), count(*)) AS high,
                group_concat(CASE WHEN flipped THEN substr(pair_id, 1, 15) END, ' ') AS flipped_pairs
            FROM (SELECT pair_id, principle_id, max(verdict = 'a') AND max(verdict = 'b') AS flipped
                FROM decisions WHERE counts GROUP BY pair_id, question_id HAVING count(DISTINCT "order") = 2)
            GROUP BY principle_id ORDER BY rate DESC""",
        ),
        Question(
            "principles-decide",
            3,
            "How often does each principle decide, and for the longer, listed, first shown, revised answer?",
            """WITH first AS (SELECT principle_id, avg(picked_first) AS share FROM decisions WHERE counts GROUP BY 1)
            SELECT v.principle_id, count(*) AS due, sum(v.stand = 'votes') AS votes,
                avg(v.stand = 'votes') AS votes_rate,
                avg(CASE WHEN v.label IN ('a', 'b') AND p.words_a <> p.words_b
                    THEN (v.label = 'a') = (p.words_a > p.words_b) END) AS for_longer,
                avg(CASE WHEN v.label IN ('a', 'b') AND p.list_a <> p.list_b
                    THEN (v.label = 'a') = (p.list_a > p.list_b) END) AS for_list,
                max(first.share) AS for_first_shown,
                avg(CASE WHEN v.label IN ('a', 'b') AND p.source = 'revision' THEN v.label = 'b' END) AS for_revision
            FROM votes v JOIN pairs p USING (pair_id) LEFT JOIN first USING (principle_id)
            GROUP BY v.principle_id ORDER BY votes DESC""",
        ),
        Question(
            "principles-conflict",
            4,
            "Which principles disagree on the same pair?",
            """SELECT one.principle_id, two.principle_id AS other, count(*) AS both_vote,
                sum(one.label <> two.label AND 'tie' NOT IN (one.label, two.label)) AS conflicts,
                avg(one.label <> two.label AND 'tie' NOT IN (one.label, two.label)) AS conflict_rate
            FROM votes one JOIN votes two ON two.pair_id = one.pair_id AND one.principle_id < two.principle_id
            WHERE one.label IS NOT NULL AND two.label IS NOT NULL
            GROUP BY 1, 2 ORDER BY conflict_rate DESC""",
        ),
        Question(
            "principles-relevance",
            4,
            "Which principles are seldom or never relevant: of the pairs they are due on, how many do they vote on?",
            """SELECT p.principle_id, count(v.stand) AS due, sum(v.stand = 'votes') AS votes,
                avg(v.stand = 'votes') AS relevance, sum(v.stand = 'abstains') AS abstains,
                sum(v.stand = 'not_applicable') AS not_applicable, sum(v.stand IN ('invalid', 'refused')) AS unusable,
                sum(v.stand = 'missing') AS missing
            FROM principles p LEFT JOIN votes v USING (principle_id) GROUP BY p.principle_id ORDER BY relevance""",
        ),
        Question(
            "panel",
            4,
            "Do the members of a panel disagree: how often is it divided, how often does each name its winner?",
            """SELECT member, count(*) AS n, sum(value IS NULL) AS unusable, avg(along) AS with_panel,
                wilson_low(sum(along), count(along)) AS low, wilson_high(sum(along), count(along)) AS high,
                avg(divided) AS divided
            FROM (SELECT member, value, CASE WHEN verdict IN ('a', 'b') THEN side = verdict END AS along,
                    coalesce((min(side) OVER decision) <> (max(side) OVER decision), 0) AS divided
                FROM (SELECT m.decision_id, m.name AS member, m.value, d.verdict,
                        CASE WHEN m.value > 0.5 THEN 'a' WHEN m.value < 0.5 THEN 'b' END AS side
                    FROM parts m JOIN decisions d ON d.pair_id = m.pair_id AND d.decision_id = m.decision_id
                    WHERE d.counts AND d.mode = 'panel' AND ltrim(m.name, '0123456789') LIKE ' %')
                WINDOW decision AS (PARTITION BY decision_id))
            GROUP BY member ORDER BY member""",
        ),
        Question(
            "invalid",
            5,
            "Which verdicts are invalid, by cause; and which prompts got none, such as those too long?",
            """SELECT reason, principle_id, count(*) AS n, min(decision_id) AS example, min(raw_reply) AS example_reply
            FROM decisions WHERE counts AND verdict IN ('invalid', 'refused') GROUP BY reason, principle_id
            UNION ALL
            SELECT 'no verdict: ' || coalesce(detail, 'no reason was kept'), NULL, count(*), min(prompt_id), NULL
            FROM walks WHERE state = 'failed' GROUP BY 1 ORDER BY n DESC""",
        ),
        Question(
            "low-margin",
            6,
            "Which decisions and labels were close, and which confident labels did people overturn?",
            """SELECT * FROM (
            SELECT 'close decision' AS why, pair_id, phase, principle_id, "order", p_a, verdict AS judge_label,
                NULL AS label, NULL AS label_source, decision_id
            FROM decisions WHERE counts AND mode <> 'check' AND abs(p_a - 0.5) < 0.1
            UNION ALL
            SELECT CASE WHEN abs(judge_p_a - 0.5) < 0.1 THEN 'close label' ELSE 'overturned' END, pair_id, phase, NULL,
                NULL, judge_p_a, judge_label, label, label_source, NULL
            FROM pairs WHERE abs(judge_p_a - 0.5) < 0.1
                OR (label_source <> 'judge' AND label <> judge_label AND abs(judge_p_a - 0.5) >= 0.3))
            ORDER BY why DESC, abs(p_a - 0.5)""",
        ),
        Question(
            "judge-and-people",
            7,
            "Judge against people, by stratum and queue? (`cai review agreement` adds kappa, AC1 and intervals)",
            """SELECT r.queue, r.stratum, p.judge_label, r.label AS human_label, count(*) AS n,
                avg(p.judge_label = r.label) AS agreed
            FROM reviews r JOIN pairs p USING (pair_id)
            WHERE r.holds AND r.blind AND r.label IS NOT NULL AND r.repeats IS NULL AND r.principle_id IS NULL
            GROUP BY r.queue, r.stratum, p.judge_label, r.label ORDER BY r.queue, r.stratum, n DESC""",
        ),
        Question(
            "changed",
            8,
            "Which labels differ from another run's? (--with RUN; `cai audit compare` says why)",
            """SELECT p.pair_id, p.prompt, p.label, o.label AS other_label, p.p_a, o.p_a AS other_p_a,
                (SELECT group_concat(v.principle_id, ' ') FROM votes v JOIN other_votes w
                    ON w.pair_id = o.pair_id AND w.principle_id = v.principle_id
                    WHERE v.pair_id = p.pair_id AND v.label IS NOT w.label) AS principles
            FROM pairs p JOIN other_pairs o ON o.prompt_id = p.prompt_id AND o.a = p.a AND o.b = p.b
            WHERE p.label IS NOT o.label""",
            ("other",),
        ),
        Question(
            "overrides",
            9,
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
            10,
            "When the judge is sure, is it right? Ten bins of confidence, with Brier score and ECE",
            f"""WITH said AS (
                SELECT CASE WHEN p.judge_p_a >= 0.5 THEN p.judge_p_a ELSE 1 - p.judge_p_a END AS p,
                    (CASE WHEN p.judge_p_a >= 0.5 THEN 'a' ELSE 'b' END) = r.label AS hit
                FROM reviews r JOIN pairs p USING (pair_id) WHERE {MEASURED}),
            bins AS (SELECT {_BIN} AS bin, count(*) AS n, avg(p) AS said, avg(hit) AS right FROM said GROUP BY 1)
            SELECT bin / 10.0 AS from_p, (bin + 1) / 10.0 AS to_p, n, said, right,
                (SELECT avg((p - hit) * (p - hit)) FROM said) AS brier,
                (SELECT sum(n * abs(said - right)) / sum(n) FROM bins) AS ece, 10 AS n_bins
            FROM bins ORDER BY bin""",
        ),
        Question(
            "recalibration",
            10,
            "Would recalibration help (temperature, Platt, isotonic)? Before and after, on prompts not fitted on",
            """SELECT curve, shown_on, n_items, brier, brier_low, brier_high, log_loss, ece, n_bins, from_p, to_p, n,
                said, came_true, note FROM recalibrated""",
        ),
        Question(
            "constant-texts",
            11,
            "Are critiques nearly constant, do texts recur, does one text win against everything?",
            """WITH answers AS MATERIALIZED (SELECT prompt_id, label, normal(a) AS a, normal(b) AS b FROM pairs)
            SELECT 'critique' AS kind, normal(text) AS text, count(*) AS n,
                count(DISTINCT prompt_id) AS prompts, NULL AS win_rate
            FROM critiques WHERE passed IS NULL GROUP BY 2 HAVING count(*) > 1
            UNION ALL
            SELECT 'answer', text, count(*), count(DISTINCT prompt_id), avg(won) FROM (
                SELECT a AS text, prompt_id, CASE WHEN a <> b THEN (label = 'a') + 0.5 * (label = 'tie') END AS won
                FROM answers UNION ALL
                SELECT b, prompt_id, CASE WHEN a <> b THEN (label = 'b') + 0.5 * (label = 'tie') END FROM answers)
            GROUP BY text HAVING count(DISTINCT prompt_id) > 1 ORDER BY n DESC""",
        ),
        Question(
            "critique-contradicts",
            11,
            "Where does the judge, by the principle it criticised an answer with, prefer that answer to its revision?",
            """WITH revised AS MATERIALIZED (SELECT * FROM critiques WHERE revision_id IS NOT NULL)
            SELECT principle_id, pair_id, round, p_a, label, critique, rate, n, rate_of_all, n_of_all FROM (
                SELECT c.principle_id, p.pair_id, c.round, v.p_a, p.label, c.text AS critique,
                    v.label = 'a' AS contradicts,
                    avg(v.label = 'a') OVER of_principle AS rate, count(*) OVER of_principle AS n,
                    avg(v.label = 'a') OVER () AS rate_of_all, count(*) OVER () AS n_of_all
                FROM revised c
                JOIN pairs p ON p.phase = c.phase AND p.a_id = c.first_answer_id AND p.source = 'revision'
                JOIN votes v ON v.pair_id = p.pair_id AND v.principle_id = c.principle_id AND v.label IS NOT NULL
                WINDOW of_principle AS (PARTITION BY c.principle_id))
            WHERE contradicts ORDER BY p_a DESC""",
        ),
        Question(
            "injections",
            12,
            "Which answers speak to the judge, and did the judge follow?",
            """WITH looked AS MATERIALIZED (SELECT pair_id, injection(a) AS in_a, injection(b) AS in_b FROM pairs),
            flagged AS MATERIALIZED (
                SELECT pair_id, group_concat(DISTINCT flag) AS flags FROM decisions
                WHERE counts AND flag IS NOT NULL GROUP BY 1)
            SELECT p.pair_id, p.phase, l.in_a, l.in_b, f.flags, p.judge_label,
                CASE WHEN l.in_a <> l.in_b THEN p.judge_label = CASE WHEN l.in_a THEN 'a' ELSE 'b' END END AS followed
            FROM pairs p JOIN looked l USING (pair_id) LEFT JOIN flagged f USING (pair_id)
            WHERE l.in_a <> l.in_b OR f.flags IS NOT NULL""",
        ),
        Question(
            "canaries",
            12,
            "What did the canaries show: signs in the texts, and questions whose answer was given away?",
            """SELECT 'sign in a text' AS canary, flag AS what, count(*) AS n, sum(named IS NOT NULL) AS could_follow,
                avg(named) AS followed, wilson_low(sum(named), sum(named IS NOT NULL)) AS low,
                wilson_high(sum(named), sum(named IS NOT NULL)) AS high
            FROM (SELECT DISTINCT d.pair_id, d.flag, CASE WHEN d.flag LIKE '% in a' THEN p.judge_label = 'a'
                    WHEN d.flag LIKE '% in b' THEN p.judge_label = 'b' END AS named
                FROM decisions d JOIN pairs p USING (pair_id) WHERE d.counts AND d.flag IS NOT NULL) GROUP BY flag
            UNION ALL
            SELECT 'question', 'told ' || told, count(*), count(named), avg(named = told),
                wilson_low(sum(named = told), count(named)), wilson_high(sum(named = told), count(named))
            FROM (SELECT told, CASE WHEN log_a > log_b THEN 'A' WHEN log_b > log_a THEN 'B' END AS named
                FROM (SELECT canary_letter(request) AS told, json_extract(reply, '$.logprobs.A') AS log_a,
                        json_extract(reply, '$.logprobs.B') AS log_b FROM calls WHERE kind = 'score')
                WHERE told IS NOT NULL) GROUP BY told""",
        ),
        Question(
            "retried",
            13,
            "Do decisions that were asked more than once come out differently?",
            """SELECT attempts > 1 AS retried, count(*) AS n, avg(verdict = 'a') AS a, avg(verdict = 'b') AS b,
                avg(verdict = 'tie') AS tie, avg(verdict IN ('invalid', 'refused')) AS unusable,
                avg(picked_first) AS picked_first
            FROM decisions WHERE attempts IS NOT NULL GROUP BY 1""",
        ),
        Question(
            "cost",
            14,
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
            15,
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
                WHERE call_key IS NOT NULL AND bytes_id(raw_reply) IS NOT reply_id
            UNION ALL
            SELECT 'calls', call_key, 'holds another reply than a part of the judgment was read from' FROM parts
                WHERE call_key IS NOT NULL AND bytes_id(raw_reply) IS NOT reply_id""",
        ),
        Question(
            "leaks",
            16,
            "Is anything trained on that also stands among the held-out prompts?",
            """SELECT t.position AS train_position, h.position AS held_out_position, t.text
            FROM (SELECT position, text, normal(text) AS words FROM prompts WHERE side = 'train') t
            JOIN (SELECT position, normal(text) AS words FROM prompts WHERE side = 'held_out') h USING (words)""",
        ),
    )
}


def named(name: str) -> Question:
    """Return the query of this name. Raises UserError."""
    if name not in QUESTIONS:
        raise UserError(f"'{name}': no such named query; there are {', '.join(QUESTIONS)}, or give a SELECT")
    return QUESTIONS[name]
