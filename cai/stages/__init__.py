"""The walk of one prompt: respond, critique, revise, compare, judge, settle.

Each stage is a function: records and a model in, records out. Only the pipeline touches disk.
"""
