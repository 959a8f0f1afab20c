"""Sign-up, activation and recovery in Flask, with only what Mailroom needs.

    pip install flask psycopg[binary]
    flask --app app run --port 8000

It has no passwords and no sessions; `examples/signup` is an application with both.
"""

import os

import flask
import psycopg

import mailroom

app = flask.Flask(__name__)
KEYS = os.environ["MAILROOM_SECRET_KEY"]
PAGE = """\
<form method="post"><input type="hidden" name="token" value="{{ token }}"><button>Activate</button></form>
"""


def connect():
    # With autocommit, `consume` commits by itself, so a wrong code stays counted.
    return psycopg.connect(os.environ["MAILROOM_DATABASE_URL"], autocommit=True)


@app.errorhandler(mailroom.TokenError)
def refused(error):
    return {"error": error.reason, "message": str(error)}, 403


@app.after_request
def keep_to_yourself(response):
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


@app.post("/sign-up")
def sign_up():
    with connect() as connection:
        connection.execute(
            "INSERT INTO accounts (email, login) VALUES (%(email)s, %(login)s) ON CONFLICT DO NOTHING",
            flask.request.form.to_dict(),
        )
    return {"message": "If that address is new, a mail is on its way."}


@app.get("/activate")
def show_activation():
    token = flask.request.args["token"]
    mailroom.verify(token, "activation", keys=KEYS)
    return flask.render_template_string(PAGE, token=token)


@app.post("/activate")
def activate():
    with connect() as connection:
        account = mailroom.consume(connection, flask.request.form["token"], "activation", keys=KEYS).account
    return {"active": account}


@app.post("/forgot")
def forgot():
    with connect() as connection:
        connection.execute(
            "INSERT INTO tokens (action, account) SELECT 'password_recovery', id FROM accounts"
            " WHERE lower(email) = lower(%s) AND status = 'active'",
            [flask.request.form["email"]],
        )
    return {"message": "If there is such an account, a mail is on its way."}


@app.post("/recover")
def recover():
    form = flask.request.form
    with connect() as connection:
        used = mailroom.consume(connection, form["token"], "password_recovery", keys=KEYS, code=form["code"])
        # Here: store the hash of the new password of used.account, and end its sessions.
    return {"recovered": used.account}
