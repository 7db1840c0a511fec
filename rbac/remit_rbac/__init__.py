"""Casbin policies for tools, at memory speed. Usable on its own; imports nothing else of Remit.

policy = load_files(None, [Path("policy.csv")])
decision = policy.decide(Question(tenant="acme", agent="agent:refunder", user="user:alice", ...))
"""

from remit_rbac.conditions import EvaluationError, Expression, ExpressionError, compile_expression
from remit_rbac.decisions import Answer, Decision, Duty, Question, RowError, Rung, Subjects
from remit_rbac.explain import NearMiss, near_misses
from remit_rbac.index import Row
from remit_rbac.loading import GUARDRAILS, load_files, load_layers, load_rows, load_text
from remit_rbac.policy import Policy
from remit_rbac.problems import CODES, PolicyError, Problem
from remit_rbac.sources import adapter_rows, table_rows

__all__ = [
    "CODES",
    "GUARDRAILS",
    "Answer",
    "Decision",
    "Duty",
    "EvaluationError",
    "Expression",
    "ExpressionError",
    "NearMiss",
    "Policy",
    "PolicyError",
    "Problem",
    "Question",
    "Row",
    "RowError",
    "Rung",
    "Subjects",
    "adapter_rows",
    "compile_expression",
    "load_files",
    "load_layers",
    "load_rows",
    "load_text",
    "near_misses",
    "table_rows",
]
