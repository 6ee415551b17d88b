"""What stages find, as they found it: the values that stages hand to each other and to the report.

Each class has a namesake in `layerdrift.contract.report`, which defines its fields: meaning, unit and range. Only stage
`report` knows both; `workers.stages.report.mapping` maps one to the other.
"""
