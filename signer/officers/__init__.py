"""Operations of officers: what needs the approval of several, and what one may stop alone.

``proposals`` prepares and collects signatures, ``execution`` executes, ``kinds`` has a module
for each group of operations, ``store`` the rows in the registry, ``records`` those in the log.
"""
