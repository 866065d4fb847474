"""JSON schemas to grammars. What the grammar lets through satisfies the schema; what a grammar cannot check is refused.

    resolve.py    references, and limits on what a schema may hold
    merge.py      a schema with allOf, $ref and siblings to one flat schema: the intersection, keyword by keyword
    disjoint.py   whether no value satisfies two schemas, which oneOf has to know
    accept.py     whether a given value satisfies a flat schema, for enum
    compiler.py   flat schemas to grammar trees
    objects.py    the part for objects
    strings.py    the part for strings: lengths, patterns, formats

The grammar may be narrower than the schema: properties come in the order of the schema, keys that it does not name are
written only where it invites them, numbers have at most 15 digits.
"""
