"""Pictures of the results, one file a module. They need matplotlib, which `pip install jaxnm[plot]` brings.

Each function draws into the Axes it is given, or into new ones, and returns them; nothing is shown or saved here.
"""
