"""Casbin policies for tools, at memory speed. Usable on its own; imports nothing else of Remit.

policy = load_files(None, [Path("policy.csv")])
decision = policy.decide(Question(tenant="acme", agent="agent:refunder", user="user:alice", ...))

Rows from databases and Casbin adapters come from `remit_rbac.sources`, and pycasbin as the engine from
`remit_rbac.stock`; both are left out here because of what they import.
"""

from remit_rbac.conditions import EvaluationError, Expression, ExpressionError, compile_expression
from remit_rbac.decisions import Answer, Decision, Duty, Question, RowError, Rung, Subjects
from remit_rbac.engine import Engine
from remit_rbac.explain import NearMiss, near_misses
from remit_rbac.forms import is_duty
from remit_rbac.index import Row
from remit_rbac.lint import hold_against
from remit_rbac.loading import GUARDRAILS, Layer, load_files, load_layers, load_rows, load_text
from remit_rbac.policy import Policy
from remit_rbac.problems import CODES, PolicyError, Problem

__all__ = [
    "CODES",
    "GUARDRAILS",
    "Answer",
    "Decision",
    "Duty",
    "Engine",
    "EvaluationError",
    "Expression",
    "ExpressionError",
    "Layer",
    "NearMiss",
    "Policy",
    "PolicyError",
    "Problem",
    "Question",
    "Row",
    "RowError",
    "Rung",
    "Subjects",
    "compile_expression",
    "hold_against",
    "is_duty",
    "load_files",
    "load_layers",
    "load_rows",
    "load_text",
    "near_misses",
]
