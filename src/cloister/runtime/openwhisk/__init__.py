"""The runtime as an OpenWhisk Docker action: the platform's ``/init`` and ``/run`` before the runtime's own HTTP.

Follows the platform's own description of the action interface (apache/openwhisk, docs/actions-new.md, "Action
Interface"; docs/webactions.md for raw web actions) and its interpretation of answers
(``ActivationResult.scala``): docs/how-to/openwhisk.md has what that means for operators.
"""
