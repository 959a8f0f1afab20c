package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/ses"
	"github.com/aws/aws-sdk-go-v2/service/ses/types"
	"golang.org/x/time/rate"
)

type row struct {
	action, email, login string
	secret               []byte
	code                 string
}

type action struct {
	Number    int    `json:"number"`
	Prefix    string `json:"prefix"`
	NeedsCode bool   `json:"needs_code"`
	Template  string `json:"template"`
}

var actions = sync.OnceValue(func() map[string]action {
	found := map[string]action{}
	check(json.Unmarshal([]byte(os.Getenv("MAILROOM_BENCH_ACTIONS")), &found))
	return found
})

var key = sync.OnceValue(func() []byte {
	first, _, _ := strings.Cut(os.Getenv("MAILROOM_SECRET_KEY"), ",")
	found, err := hex.DecodeString(first)
	check(err)
	return found
})

// sign returns the token of a secret.
func sign(found row) string {
	known := actions()[found.action]
	signature := hmac.New(sha256.New, key())
	signature.Write([]byte(known.Prefix))
	signature.Write(found.secret)
	if known.NeedsCode {
		signature.Write([]byte(found.code))
	}
	return base64.RawURLEncoding.EncodeToString(append(found.secret[:len(found.secret):len(found.secret)], signature.Sum(nil)...))
}

// line returns the line of one mail.
func line(found row) []byte {
	fields := []string{
		strconv.Itoa(actions()[found.action].Number), quoted(found.email), quoted(found.login), sign(found), found.code,
	}
	return []byte(strings.Join(fields, ",") + "\n")
}

func quoted(field string) string {
	if strings.ContainsAny(field, ",\"") {
		return `"` + strings.ReplaceAll(field, `"`, `""`) + `"`
	}
	return field
}

// sender returns a function that sends one mail through SES, within its rate.
func sender() func(context.Context, row) error {
	perSecond, err := strconv.Atoi(os.Getenv("MAILROOM_BENCH_RATE"))
	check(err)
	// The SDK keeps 10 idle connections to a host unless told otherwise:
	// https://docs.aws.amazon.com/sdk-for-go/v2/developer-guide/configure-http.html
	connections := awshttp.NewBuildableClient().WithTransportOptions(func(transport *http.Transport) {
		transport.MaxIdleConnsPerHost = 200
		transport.MaxConnsPerHost = 200
	})
	loaded, err := config.LoadDefaultConfig(context.Background(), config.WithHTTPClient(connections))
	check(err)
	client, limiter := ses.NewFromConfig(loaded), rate.NewLimiter(rate.Limit(perSecond), perSecond/20)
	return func(ctx context.Context, found row) error {
		data, err := json.Marshal(map[string]string{"login": found.login, "secret": sign(found), "code": found.code})
		if err != nil {
			return err
		}
		if err := limiter.Wait(ctx); err != nil {
			return err
		}
		_, err = client.SendTemplatedEmail(ctx, &ses.SendTemplatedEmailInput{
			Source:       aws.String(os.Getenv("MAILROOM_SES_SOURCE")),
			Destination:  &types.Destination{ToAddresses: []string{found.email}},
			Template:     aws.String(actions()[found.action].Template),
			TemplateData: aws.String(string(data)),
		})
		return err
	}
}
