package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/orgd/orgd/client"
)

func Example() {
	ctx := context.Background()
	c := client.New("http://127.0.0.1:8080", os.Getenv("ORGD_KEY"))

	acme, err := c.CreateOrg(ctx, client.OrgCreate{Name: "Acme"})
	if err != nil {
		log.Fatal(err)
	}
	sales, err := c.CreateOrg(ctx, client.OrgCreate{Name: "Sales", ParentID: acme.ID, Type: client.TypeGroup})
	if err != nil {
		log.Fatal(err)
	}
	key, err := c.CreateKey(ctx, sales.ID, client.KeyCreate{Name: "CRM", Permissions: []string{"read"}})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("The key, shown once:", key.Secret)
}

func ExampleClient_Descendants() {
	c := client.New("http://127.0.0.1:8080", os.Getenv("ORGD_KEY"))
	for o, err := range c.Descendants(context.Background(), "org-123", 0) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(o.Depth, o.Name)
	}
}

func ExampleIfMatch() {
	ctx := context.Background()
	c := client.New("http://127.0.0.1:8080", os.Getenv("ORGD_KEY"))
	o, err := c.Org(ctx, "org-123")
	if err != nil {
		log.Fatal(err)
	}
	name := o.Name + " (closed)"
	_, err = c.UpdateOrg(ctx, o.ID, client.OrgUpdate{Name: &name}, client.IfMatch(o.ETag))
	if client.IsCode(err, "precondition_failed") {
		fmt.Println("Somebody changed it in the meantime.")
	}
}

func ExampleError() {
	c := client.New("http://127.0.0.1:8080", os.Getenv("ORGD_KEY"))
	_, err := c.Org(context.Background(), "org-123")
	var e *client.Error
	if errors.As(err, &e) {
		fmt.Println(e.Status, e.Code, e.Detail, e.Fix, e.RequestID)
	}
}
