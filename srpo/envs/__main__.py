"""Tell in one line whether pictures can be rendered on this machine: python -m srpo.envs"""

from srpo.envs.gl import MissingGLError, probe

if __name__ == "__main__":
    try:
        print(probe())
    except MissingGLError as error:
        raise SystemExit(str(error)) from None
