"""Sign-up, activation and recovery in Flask with SQLAlchemy, with only what Mailroom needs.

    pip install flask 'mailroom-postgresql[sqlalchemy]'
    flask --app app run --port 8000

It has no passwords and no sessions; `examples/signup` is an application with both.
"""

import os

import flask
import psycopg
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker

import mailroom
from mailroom.contrib.sqlalchemy import consume

app = flask.Flask(__name__)
KEYS = os.environ["MAILROOM_SECRET_KEY"]
PAGE = """\
<form method="post"><input type="hidden" name="token" value="{{ token }}"><button>Activate</button></form>
"""
engine = create_engine(
    "postgresql+psycopg://", creator=lambda: psycopg.connect(os.environ["MAILROOM_DATABASE_URL"])
)
sessions = sessionmaker(engine)


@app.errorhandler(mailroom.TokenError)
def refused(error):
    return {"error": error.reason, "message": str(error)}, 403


@app.after_request
def keep_to_yourself(response):
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


@app.post("/sign-up")
def sign_up():
    with sessions.begin() as session:
        session.execute(
            text("INSERT INTO accounts (email, login) VALUES (:email, :login) ON CONFLICT DO NOTHING"),
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
    with sessions.begin() as session:
        used = consume(session, flask.request.form["token"], "activation", keys=KEYS)
    return {"active": used.account}


@app.post("/forgot")
def forgot():
    with sessions.begin() as session:
        session.execute(
            text(
                "INSERT INTO tokens (action, account) SELECT 'password_recovery', id FROM accounts"
                " WHERE lower(email) = lower(:email) AND status = 'active'"
            ),
            flask.request.form.to_dict(),
        )
    return {"message": "If there is such an account, a mail is on its way."}


@app.post("/recover")
def recover():
    form = flask.request.form
    with sessions.begin() as session:  # a wrong code is counted although this rolls back
        used = consume(session, form["token"], "password_recovery", keys=KEYS, code=form["code"])
        # Here: store the hash of the new password of used.account, and end its sessions.
    return {"recovered": used.account}
