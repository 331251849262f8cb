"""Exact Pareto fronts of what adds up over the stages."""
